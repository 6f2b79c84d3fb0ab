"""One process of stage 1: read, render, predict, encode, commit.

In: decode groups of a cache. Out: committed parts, and failures by name. `stage1` runs the stages
side by side. Imports `teacher` and `cache_tools`.
"""
