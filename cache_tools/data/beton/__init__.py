"""A data set as one `.beton`, the container FFCV reads; written and indexed here without FFCV.

In: a data set (`writer`) or a file (`reader`). Out: the file, or an `ImageDataset` of it whose
pixels, digests and caches are those of the original. Imports `data`, `render` and `storage`.
"""
