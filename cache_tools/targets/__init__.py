"""The sparse-target codec: logits to a few bytes per view and back.

In: logits or probabilities. Out: `codec.Stored`, and decoded targets at a temperature; `mixture`
has the distributions of several teachers. Imports `spec` and `numerics`.
"""
