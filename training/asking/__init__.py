"""Questions to runs that are done: inspect, look closer, replay, branch from a growth.

The recorded run stays as it is.
"""
