"""What the passes share: building nodes, reading parameters, inferring signs, cutting subgraphs."""
