"""Many runs: policies x seeds, on this machine or many, into one comparison.

What is finished is not run again.
"""
