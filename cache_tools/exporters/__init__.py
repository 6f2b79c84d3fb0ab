"""Targets of a cache in formats that others read."""
