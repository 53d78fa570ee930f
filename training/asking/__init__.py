"""Questions to runs that are done: inspect, replay with another policy, branch from a growth.

The recorded run stays as it is.
"""
