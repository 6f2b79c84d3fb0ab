"""Readers of files from outside, fed with damaged and hostile ones."""
