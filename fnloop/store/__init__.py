"""The store: checkpoints without pickle, atomic, and verified when they are loaded."""

from fnloop.store.manifest import read_manifest as read_manifest
from fnloop.store.state_dict import load_state_dict as load_state_dict
