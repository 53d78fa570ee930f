"""Where layers' outputs go in a forward pass: which norm takes them, what else, and whether a relu.

Nothing here knows what a layer is, or what is read of it.
"""
