"""Trackers: where a run's numbers go."""

from fnloop.track.aim import Aim as Aim
from fnloop.track.base import Tracker as Tracker
from fnloop.track.jsonl import JSONL as JSONL
from fnloop.track.table import CSV as CSV
from fnloop.track.tensorboard import TensorBoard as TensorBoard
from fnloop.track.track import track as track
