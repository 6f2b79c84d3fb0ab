"""Data sets of images: WebDataset shards, class folders, `.beton` files, at a path or a URL.

In: a source and a split. Out: `Images`, an index with random access, and the sample table made of
it. `match` aligns a data set with a cache's table. Imports `render` (to decode) and `storage`.
"""
