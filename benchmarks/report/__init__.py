"""The tables and the plot of the CPU results, and what all tables and plots share."""
