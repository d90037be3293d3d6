"""Everything that is asked of transformers before a model runs: names, classes, lengths, tokens, and its failures.

Importing a module of this room imports transformers only where it says so; that takes seconds.
"""
