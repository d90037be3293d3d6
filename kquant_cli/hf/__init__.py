"""What transformers knows of a model, asked in one place: names, classes, lengths, tokens, and why it refuses one.

Importing a module of this room imports transformers only where it says so; that takes seconds.
"""
