"""One run: prepared, begun or resumed, step by step to the end of its budget, and its summary.

`loop.py` reads top to bottom; the other files are its lines.
"""
