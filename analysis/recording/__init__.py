"""Lines of history: what a Record is, and how files are written and read.

Nothing here imports torch.
"""
