"""Base classes for what you write yourself (stages, callbacks, effects), and what helps."""

from fnloop.effects.effect import Effect as Effect
from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.stages.base import GradStage as GradStage
from fnloop.stages.base import Stage as Stage
from fnloop.stages.base import StepStage as StepStage
from fnloop.stages.callback import Callback as Callback
from fnloop.stages.each_example import per_example as per_example
from fnloop.stages.loss_at import loss_at as loss_at

__getattr__ = _suggesting(__name__)
