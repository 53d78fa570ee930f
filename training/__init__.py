"""Data, the loop, checkpoints and sweeps: everything that trains, on top of the other floors."""
