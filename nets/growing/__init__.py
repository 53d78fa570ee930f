"""How a network changes: values, optimizer state and all that goes with them are carried over.

`grow` is the whole call.
"""
