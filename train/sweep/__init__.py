"""Grids of students: cohorts that share every batch, Ray Tune, table, plot and cost.

In: a grid file and a cache. Out: a folder of runs and `sweep.json`. Imports `trainer`, `evaluate`
and below.
"""
