"""Tables and plots of measured results."""
