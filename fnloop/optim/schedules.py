"""Schedules: pure functions of the step.

Each is a tree that is called with the number of committed optimizer steps: an int gives a float
(double precision), an int64 tensor a float32 tensor.
"""
