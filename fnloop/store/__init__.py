"""The store: checkpoints without pickle, atomic, and verified when they are loaded."""

from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.store.manifest import read_manifest as read_manifest
from fnloop.store.state_dict import load_state_dict as load_state_dict

__getattr__ = _suggesting(__name__)
