"""What becomes a line of history: Records, what probes measure for them, and words for actions.

Files are replaced whole or added to.
"""
