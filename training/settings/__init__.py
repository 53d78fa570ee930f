"""What a run or a comparison can be told: settings, their defaults, and which are refused.

They go to a config.yaml and come back; nothing here imports torch.
"""
