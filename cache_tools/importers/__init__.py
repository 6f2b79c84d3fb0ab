"""Logits that somebody already has, into the format: one module per kind of source."""
