"""Evaluation of a network: accuracy, ReaL, calibration, agreement with the teacher.

In: a run or a network, and validation images. Out: facts for `result.json` and the table. Imports
`data`, `run_dir` and below.
"""
