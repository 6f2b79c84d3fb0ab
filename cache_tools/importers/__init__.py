"""Import of soft labels of other systems, one module per kind of source.

In: files of TinyViT, FKD, ml-dr or dense logits, read as data alone (no pickled code runs). Out: a
cache, written by `base`. Imports `data`, `store` and below.
"""
