"""The store: checkpoints without pickle, atomic, and verified when they are loaded."""

from fnloop.store.checkpoint import checkpoint as checkpoint
from fnloop.store.errors import CheckpointError as CheckpointError
from fnloop.store.folders import best as best
from fnloop.store.folders import latest as latest
from fnloop.store.load import load as load
from fnloop.store.manifest import read_manifest as read_manifest
from fnloop.store.save import save as save
from fnloop.store.state_dict import load_state_dict as load_state_dict
