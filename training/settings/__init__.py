"""What a run or a comparison can be told, and the command line that tells it.

Nothing here imports torch.
"""
