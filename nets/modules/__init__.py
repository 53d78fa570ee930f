"""The torch modules that an architecture describes, and those of others taken over.

Parts that are held fixed are buffers; draws depend on the seed alone.
"""
