"""The optimizers, one file for each family of update rules."""
