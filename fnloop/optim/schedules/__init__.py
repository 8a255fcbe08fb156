"""Schedules: pure functions of the step.

Each is a tree that is called with the number of committed optimizer steps: an int gives a float
(double precision), an int64 tensor a float32 tensor.
"""

from fnloop.optim.schedules.base import Schedule as Schedule
from fnloop.optim.schedules.decay import constant as constant
from fnloop.optim.schedules.decay import cosine as cosine
from fnloop.optim.schedules.decay import exponential as exponential
from fnloop.optim.schedules.decay import inverse_sqrt as inverse_sqrt
from fnloop.optim.schedules.decay import linear as linear
from fnloop.optim.schedules.decay import polynomial as polynomial
from fnloop.optim.schedules.decay import step_decay as step_decay
from fnloop.optim.schedules.phases import join as join
from fnloop.optim.schedules.phases import one_cycle as one_cycle
from fnloop.optim.schedules.phases import warmup_stable_decay as warmup_stable_decay
