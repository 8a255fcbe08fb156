"""Published training schemes: stages and gradient transforms, one file each, with their papers."""

from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.schemes.centralization import centralize as centralize
from fnloop.schemes.langevin import sgld as sgld
from fnloop.schemes.sharpness_aware import sam as sam
from fnloop.schemes.slow_weights import lookahead as lookahead

__getattr__ = _suggesting(__name__)
