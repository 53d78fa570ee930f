"""How a run computes: device and precision, processes, signals, optimizer and learning rate.

Nothing here knows a run or its folder; its budget is counted here.
"""
