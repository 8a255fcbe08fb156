"""Errors to catch: of compiled steps, of donated states, and of checkpoints."""

from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.store.checkpoint_errors import CheckpointError as CheckpointError
from fnloop.transforms.compile_errors import CompileError as CompileError
from fnloop.values.donated import DonatedError as DonatedError

__getattr__ = _suggesting(__name__)
