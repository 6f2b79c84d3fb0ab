"""Verification of a cache: digests, values, images, pixels of probe views.

In: an opened cache and, on request, its data set. Out: a `Verdict` with every problem. Imports
`data`, `store`, `render` and below.
"""
