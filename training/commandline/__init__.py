"""The command line: its commands and options, what it refuses and how, and what it prints where.

Nothing here imports torch; a user's policies are found by their import path.
"""
