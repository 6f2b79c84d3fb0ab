"""Batches of views with their targets: schedule, loaders, upload.

In: opened caches and their images. Out: batches, each a function of (epoch, step) alone; pixels by
the native loader or by FFCV. Imports `recipe`, `distributed` and `cache_tools`.
"""
