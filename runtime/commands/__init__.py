"""The command line `python -m runtime`: one module per command, and the parser in `main`."""
