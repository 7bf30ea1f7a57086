"""The tables and the plot of the CPU results, and code that all tables and plots share."""
