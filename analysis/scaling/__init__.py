"""What happens to a network's responses as it is made wider.

It trains small nets of several widths for a few steps, and needs nothing of a run.
"""
