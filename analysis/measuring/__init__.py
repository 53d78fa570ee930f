"""Statistics of layers: of what a module gave, and of parameters, their gradients and updates.

Nothing here knows the network's names, layers and steps, or reads on the host.
"""
