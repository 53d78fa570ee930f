"""How what steps gave becomes sums over a window: of layers' statistics, of the whole, of ranks.

It knows places and tensors; whose they are is the business of the rooms above.
"""
