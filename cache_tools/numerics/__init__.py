"""Exact arithmetic: the counter-based generator and functions with the same bits everywhere.

In and out: numpy arrays. Imports no other room.
"""
