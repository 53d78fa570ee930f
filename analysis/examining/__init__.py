"""What an Observer reads on request alone, and of which layers.

It knows tensors and names; when they are read is the business of the rooms above.
"""
