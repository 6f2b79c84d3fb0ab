"""Size of a cache before it is made: samples, parts, bytes, hours, a preview of its views.

In: a recipe and a data set. Out: facts and a contact sheet. Imports `teacher`, `worker.open_cache`
and `cache_tools`.
"""
