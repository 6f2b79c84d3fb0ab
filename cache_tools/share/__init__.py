"""Publish and fetch caches: pull, push, the model card, the Hub.

In: an opened cache or its URL. Out: a folder or a bucket with the same parts. Imports `verify`,
`combine` and what lies below.
"""
