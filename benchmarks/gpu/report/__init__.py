"""The tables, the plot and the goals, made from a file of GPU results."""
