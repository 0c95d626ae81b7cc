"""Times with their proof: what is timed, how, and what becomes of the numbers.

`colaworld bench` and `python -m pytest benchmarks` run the same definitions (`run.listed`). Installed
as `colaworld.benchmarks`; everything inside imports relatively. Not here: any code that is timed.
"""
