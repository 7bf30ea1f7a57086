"""The artifact on disk: its manifest, its files, and the contract of each graph.

`saeexport` writes what this wing reads, so the format is defined here and nowhere else.
"""
