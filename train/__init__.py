"""Stage 2: train students on the views the teacher was given, with its stored targets."""
