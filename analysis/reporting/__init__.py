"""What a comparison shows of itself: its report as one page, and its board in TensorBoard.

Both are made from the judgement and the histories of the runs, by the same pictures.
"""
