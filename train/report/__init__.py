"""Sections of `kdcache report` for runs and sweeps.

history.py        rows of the logs, as many as a curve needs
run_facts.py      a run as facts: curves, likeness to the teacher, confusions
run_section.py    these facts as a section of the page; confusion.py its groups by class
comparison.py     runs beside each other; distillation against labels
sweep_section.py  results of a sweep; cost.py its costs
inputs.py         the kind of each path

In: runs and sweeps. Out: sections of `cache_tools.report`. Imports `sweep`, `run_dir` and below.
"""
