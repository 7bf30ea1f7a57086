"""Code that several passes share: building nodes, reading parameters, sign inference, cutting subgraphs."""
