"""What an export, an intervention and each node of a graph cost."""
