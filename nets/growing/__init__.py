"""How a network changes: values, optimizer state and all that goes with them are carried over.

New entries get their first values here.
"""
