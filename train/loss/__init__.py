"""The losses of distillation and the task that applies them.

In: a student's logits and stored targets. Out: a scalar and its terms. Imports `recipe`,
`distributed` and `cache_tools.targets`.
"""
