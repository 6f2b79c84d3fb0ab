"""The training loop, and what a student needs around it: factory, checkpoints, logs, a plan.

In: a recipe and opened inputs. Out: a run folder with the trained student. `loop` is read from top
to bottom. Imports `data`, `loss`, `evaluate`, `export` and below.
"""
