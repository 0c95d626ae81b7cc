"""What only a GPU can answer; every file is one stage of `make gpu` and runs by itself.

    python -m colaworld.benchmarks.card.ceilings --out ceilings.json --seconds 20

Not here: the order of the stages and their shares of the time (`gpu.py`).
"""
