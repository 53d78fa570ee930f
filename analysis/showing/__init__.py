"""What people look at: TensorBoard, tables, pictures, the report.

Everything is made from records and judged comparisons.
"""
