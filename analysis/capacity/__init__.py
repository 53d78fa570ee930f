"""Where a network lacks channels: how much the loss depends on those it has; its stages ranked.

A number a block at every record; the ranking is a pure function of records.
"""
