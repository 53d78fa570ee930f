"""Data sets in memory: how they are read, divided into splits, normalised, cropped and mirrored.

Batches of training images come from a seed alone; a run's data.json says which images it saw.
"""
