"""Statistics of tensors: pure functions of what a layer gave.

Nothing here knows modules or hooks, or reads on the host.
"""
