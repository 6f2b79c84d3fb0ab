"""Commands of stage 2: advise, train, sweep, eval, export, report, bench.

In: command lines. Out: results on stdout. Imports every room of `train`, inside the commands.
"""
