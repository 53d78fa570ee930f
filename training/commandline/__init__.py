"""The command line: its commands and options, what it refuses, what it prints where, its memory.

Nothing here imports torch; a user's policies are found by their import path.
"""
