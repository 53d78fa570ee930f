"""What runs and comparisons can claim: curves, tests of significance, rules of thumb.

Numbers in, verdicts out; nothing is drawn here.
"""
