"""Stage 2: train students on the very views the teacher saw, with what it said of them."""
