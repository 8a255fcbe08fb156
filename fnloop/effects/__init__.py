"""The protocol of effects, and what they share; each effect lies with its subject."""

from fnloop.effects.effect import Effect as Effect
from fnloop.effects.effect import Run as Run
from fnloop.effects.effect import effect as effect
from fnloop.effects.effect import named as named
