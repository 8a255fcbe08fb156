"""The optimizers, one file per family of update rules."""
