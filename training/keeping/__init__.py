"""What a run stands on: its folder, locks, signals, processes, budget.

What is written is whole or not there.
"""
