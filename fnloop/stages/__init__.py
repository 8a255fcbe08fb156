"""Stages: ``(state, x) -> (state, y)``, one file each, all with the same skeleton."""

from fnloop.stages.accumulate import accumulate as accumulate
from fnloop.stages.amp import amp as amp
from fnloop.stages.base import Callback as Callback
from fnloop.stages.base import GradStage as GradStage
from fnloop.stages.base import Stage as Stage
from fnloop.stages.base import StepStage as StepStage
from fnloop.stages.ema import ema as ema
from fnloop.stages.grad import grad as grad
from fnloop.stages.guard import guard as guard
from fnloop.stages.lift import stage as stage
from fnloop.stages.nonfinite import nonfinite as nonfinite
from fnloop.stages.pipe import compose as compose
from fnloop.stages.pipe import pipe as pipe
from fnloop.stages.scale import scale as scale
from fnloop.stages.spike import spike as spike
from fnloop.stages.update import update as update
