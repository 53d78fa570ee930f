"""How new entries begin: what an initializer is and sees, and those in the box.

A user's own stands beside them: nets.initializing.initializer says what it gives.
"""
