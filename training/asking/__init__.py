"""Questions to runs that are done: replay with another policy, branch from a growth.

The recorded run stays as it is.
"""
