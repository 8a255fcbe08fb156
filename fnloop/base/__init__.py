"""Base classes for what you write yourself: stages, callbacks and effects."""

from fnloop.effects.effect import Effect as Effect
from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.stages.base import GradStage as GradStage
from fnloop.stages.base import Stage as Stage
from fnloop.stages.base import StepStage as StepStage
from fnloop.stages.callback import Callback as Callback

__getattr__ = _suggesting(__name__)
