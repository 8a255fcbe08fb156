"""Trackers: they store a run's metrics; and effects that measure what they store beside them."""

from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.trackers.aim import Aim as Aim
from fnloop.trackers.base import Tracker as Tracker
from fnloop.trackers.device_load import device_stats as device_stats
from fnloop.trackers.jsonl import JSONL as JSONL
from fnloop.trackers.speed import throughput as throughput
from fnloop.trackers.table import CSV as CSV
from fnloop.trackers.tensorboard import TensorBoard as TensorBoard

__getattr__ = _suggesting(__name__)
