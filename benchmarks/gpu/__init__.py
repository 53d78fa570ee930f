"""A step of ours on a GPU beside the usual loop's and a bare one's; records, growths, processes.

`python -m benchmarks.gpu` prints the tables of docs/gpu.md.
"""
