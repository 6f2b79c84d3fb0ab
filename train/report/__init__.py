"""Sections of `kdcache report` for runs, their comparison, and sweeps.

In: runs and sweeps, read as facts. Out: sections of `cache_tools.report`. Imports `sweep`,
`run_dir` and below.
"""
