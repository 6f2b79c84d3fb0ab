"""Tables of images in Parquet and Arrow files, as Hugging Face's `datasets` writes them.

In: a file, local or by ranges of bytes. Out: its `Layout` (columns, classes) and its rows as the
bytes of a tar, which `data` keeps as a plain shard. pyarrow decodes (the extra `parquet`); sizes
that a file states are checked here first. Imports `spec`, `runtime` and below.
"""
