"""The specification of a cache as frozen dataclasses: the room to read first (FORMAT.md, 2).

In: a manifest or a recipe. Out: `CacheSpec` with its data set, teacher, views and targets, the
sample table, canonical JSON and the fingerprint; class names for display. Imports `errors`,
`config` and numpy alone.
"""
