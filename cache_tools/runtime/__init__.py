"""The process: signals, threads, bounded concurrency, progress bars, terminal text.

In and out: nothing of a cache. Imports `errors` alone.
"""
