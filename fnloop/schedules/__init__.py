"""Schedules: pure functions of the step.

Each is a tree with ``__call__``, which takes the number of committed optimizer steps. An int gives
a float, an int64 tensor a float64 tensor.
"""

from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.schedules.averages import uniform as uniform
from fnloop.schedules.base import Schedule as Schedule
from fnloop.schedules.by_count import by_epoch as by_epoch
from fnloop.schedules.by_count import by_step as by_step
from fnloop.schedules.decay import constant as constant
from fnloop.schedules.decay import cosine as cosine
from fnloop.schedules.decay import exponential as exponential
from fnloop.schedules.decay import inverse_sqrt as inverse_sqrt
from fnloop.schedules.decay import linear as linear
from fnloop.schedules.decay import polynomial as polynomial
from fnloop.schedules.decay import step_decay as step_decay
from fnloop.schedules.phases import join as join
from fnloop.schedules.phases import one_cycle as one_cycle
from fnloop.schedules.phases import warmup_stable_decay as warmup_stable_decay

__getattr__ = _suggesting(__name__)
