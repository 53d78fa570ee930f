"""What a network is, as data: architectures, the actions that edit them, their layers and costs.

Nothing here imports torch.
"""
