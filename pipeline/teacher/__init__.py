"""Teachers: create them, run them, select their classes, run them again for a check.

In: pixels of views. Out: logits, or sparse targets of them, on the teacher's device. Imports
`pipeline.recipe` and `cache_tools`; the only room of stage 1 with networks.
"""
