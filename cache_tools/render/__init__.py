"""Pixels of views: decode, crop, resize, flip, image operations, mixing.

In: encoded images and view parameters (`views`). Out: uint8 pixels, the same on every machine.
`view` is the entrance; the other modules hold one step each. Imports `views` and below.
"""
