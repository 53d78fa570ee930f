"""One step of training, a function of tensors alone: as it is written, or captured and replayed.

Its numbers come from a clock on the device (`training.computing.clock`).
"""
