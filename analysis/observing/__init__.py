"""Reading layers while a network trains: which modules are layers, hooks, steps, windows of steps.

What is read of a layer over a window becomes a LayerReading.
"""
