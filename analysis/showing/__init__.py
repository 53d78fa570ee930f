"""What people look at: a run in TensorBoard, tables, pictures and their colours.

Everything is made from records and judged comparisons.
"""
