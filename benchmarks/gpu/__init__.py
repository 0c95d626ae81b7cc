"""What a GPU is asked for in its first minutes: `python -m benchmarks.gpu`.

Not here: the cases that are timed (ops/, training.py) and what has to hold of kernels (tests/gpu).
"""
