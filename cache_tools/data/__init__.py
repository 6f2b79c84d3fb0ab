"""Data sets of images: WebDataset shards, class folders, `.beton` files, at a path or a URL.

In: a source and a split. Out: `ImageDataset`, an index with random access, the sample table made
of it, and a `ViewRenderer`. `match` aligns a data set with a cache's table. Imports `render`
(to decode and render views) and `storage`.
"""
