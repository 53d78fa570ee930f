"""The version of growthrings."""

__version__ = "0.1.0"
