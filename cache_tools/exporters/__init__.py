"""Export of a cache to formats that other tools read, one module per format.

In: an opened cache. Out: files of TinyViT, WebDataset or Parquet. Imports `store` and below.
"""
