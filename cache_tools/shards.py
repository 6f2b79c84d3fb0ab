"""Alias of `cache_tools.data.open`, for scripts written when that module had this name."""

from cache_tools.data.open import describe, has_split, open_images, resolve

__all__ = ["describe", "has_split", "open_images", "resolve"]
