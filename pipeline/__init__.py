"""Stage 1: run a teacher over reproducible views and write its sparse targets to a cache."""
