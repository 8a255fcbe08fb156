"""Trackers: they store a run's metrics and show what belongs to them; and effects that measure."""

from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.trackers.aim import Aim as Aim
from fnloop.trackers.base import Tracker as Tracker
from fnloop.trackers.device_load import device_stats as device_stats
from fnloop.trackers.distributions import Histogram as Histogram
from fnloop.trackers.jsonl import JSONL as JSONL
from fnloop.trackers.mlflow_runs import MLflow as MLflow
from fnloop.trackers.pictures import Image as Image
from fnloop.trackers.showing import show as show
from fnloop.trackers.shown import File as File
from fnloop.trackers.shown import Shown as Shown
from fnloop.trackers.shown import Text as Text
from fnloop.trackers.sounds import Audio as Audio
from fnloop.trackers.speed import throughput as throughput
from fnloop.trackers.table import CSV as CSV
from fnloop.trackers.tensorboard import TensorBoard as TensorBoard
from fnloop.trackers.trackio_runs import Trackio as Trackio
from fnloop.trackers.views import gradients as gradients
from fnloop.trackers.views import histograms as histograms
from fnloop.trackers.views import matrix as matrix
from fnloop.trackers.wandb_runs import WandB as WandB

__getattr__ = _suggesting(__name__)
