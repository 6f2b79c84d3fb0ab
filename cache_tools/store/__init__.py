"""The Zarr layout and its commit records: create, write a part, commit, read (FORMAT.md).

In: a `CacheSpec`, encoded targets and view parameters. Out: `cache.Cache`, parts checked against
their digests. Imports `storage`, `spec`, `targets`, `views`: numpy, zarr and numba, no image
library.
"""
