"""Mutation testing of the proof: changes its code in one place at a time, and counts the changes that no test notices.

`python -m tests.mutation` runs it. Each mutant runs in a process that is forked when everything is imported and the
fixtures of a test file are made, so that it takes a fraction of a second. mutmut does not change properties, of which
the rule has many, and cosmic-ray starts an interpreter for each mutant, which takes ten seconds to import PyTorch.
"""
