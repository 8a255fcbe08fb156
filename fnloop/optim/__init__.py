"""Optimizers, gradient transforms and schedules."""

from fnloop.optim.adam import adam as adam
from fnloop.optim.adam import adamw as adamw
from fnloop.optim.base import Optimizer as Optimizer
