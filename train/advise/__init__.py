"""Smallest sufficient cache: gradients of a student from sparse targets beside those of full ones.

In: logits of a teacher and the student's recipe. Out: facts, a table and a picture. Imports `loss`,
`recipe` and `cache_tools`.
"""
