"""One run: the loop, its step, its records, its growth, checkpoint and end.

The loop reads top to bottom.
"""
