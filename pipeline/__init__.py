"""Stage 1: run a teacher over views that can be drawn again, and write what it says to a cache."""
