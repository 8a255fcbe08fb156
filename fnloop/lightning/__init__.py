"""Bring a ``LightningModule`` as it is. Nothing here imports ``pytorch_lightning``."""

from fnloop.lightning.brought import step as step
from fnloop.lightning.datamodules import data as data
from fnloop.lightning.saved_weights import read as read
from fnloop.names.suggestions import suggesting as _suggesting

__getattr__ = _suggesting(__name__)
