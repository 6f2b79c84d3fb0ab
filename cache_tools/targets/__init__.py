"""The sparse-target codec: logits to a few bytes per view and back.

In: logits or probabilities. Out: `codec.EncodedTargets`, and decoded targets at a temperature;
`mixture` makes those of several teachers one. Imports `spec` and `numerics`.
"""
