"""Parameters of views: seeds to boxes, flips, operations, erased boxes and mixing partners.

In: a `ViewSpec`, sample ids and view numbers. Out: arrays of parameters, without a pixel; imported
views carry theirs. Imports `spec` and `numerics`.
"""
