"""Reading layers while a network trains: which layers, hooks, windows of steps, probes.

What is read of a layer becomes a LayerReading.
"""
