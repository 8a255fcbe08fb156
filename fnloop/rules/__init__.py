"""Rules of `fl.guard`: which steps are bad."""

from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.rules.finiteness import nonfinite as nonfinite
from fnloop.rules.spikes import spike as spike

__getattr__ = _suggesting(__name__)
