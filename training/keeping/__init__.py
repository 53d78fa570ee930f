"""What a run keeps: its folder and the lock on it, its state between steps and in a checkpoint.

What is written is finite, and whole or not there.
"""
