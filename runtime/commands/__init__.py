"""The command line `python -m runtime`: `main` has the parser, and each command has a module of its own."""
