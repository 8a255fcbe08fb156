"""Effects: what tells the world about a run. The protocol; the effects themselves lie with their subjects."""

from fnloop.effects.effect import Effect as Effect
from fnloop.effects.effect import Run as Run
from fnloop.effects.effect import effect as effect
