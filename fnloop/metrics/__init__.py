"""Metrics: functions of predictions and targets that return mergeable values."""

from fnloop.metrics.accuracies import accuracy as accuracy
from fnloop.metrics.accuracies import top_k_accuracy as top_k_accuracy
from fnloop.metrics.adapter import from_torchmetrics as from_torchmetrics
from fnloop.metrics.confusion_matrix import confusion as confusion
from fnloop.metrics.f_score import f1 as f1
from fnloop.metrics.perplexities import perplexity as perplexity
from fnloop.metrics.regression import mae as mae
from fnloop.metrics.regression import mse as mse
from fnloop.metrics.regression import r2 as r2
from fnloop.metrics.regression import rmse as rmse
from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.values.merging import find as find
from fnloop.values.merging import merge as merge
from fnloop.values.merging import numbers as numbers
from fnloop.values.metrics import Metric as Metric

__getattr__ = _suggesting(__name__)
