"""What a cache is of, as frozen dataclasses: the room to read first (FORMAT.md, section 2).

In: a manifest or a recipe. Out: `CacheSpec` with its data set, teacher, views and targets, the
sample table, canonical JSON and the fingerprint. Imports `config` and numpy alone.
"""
