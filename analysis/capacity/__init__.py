"""Where a network lacks channels: how much the loss hangs on those it has, and stages ranked by it.

A number a block at every record; the ranking is a pure function of records.
"""
