"""Bytes by name: folders, zips, URLs and object stores, with atomic writes and a disk cache.

In: a path or a URL. Out: a `Storage` that reads, writes and locks files by name. Independent of
the format. Imports `runtime` and below; fsspec only for URLs.
"""
