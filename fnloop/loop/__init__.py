"""The loop: run, fit, evaluate, predict; callbacks and effects."""
