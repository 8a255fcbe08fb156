"""Metrics: functions from predictions and targets to monoids."""

from fnloop.metrics.accuracy import accuracy as accuracy
from fnloop.metrics.accuracy import top_k_accuracy as top_k_accuracy
from fnloop.metrics.adapter import Torchmetric as Torchmetric
from fnloop.metrics.adapter import from_torchmetrics as from_torchmetrics
from fnloop.metrics.confusion import Confusion as Confusion
from fnloop.metrics.confusion import confusion as confusion
from fnloop.metrics.f1 import F1 as F1
from fnloop.metrics.f1 import f1 as f1
from fnloop.metrics.perplexity import Perplexity as Perplexity
from fnloop.metrics.perplexity import perplexity as perplexity
from fnloop.metrics.regression import R2 as R2
from fnloop.metrics.regression import Rmse as Rmse
from fnloop.metrics.regression import mae as mae
from fnloop.metrics.regression import mse as mse
from fnloop.metrics.regression import r2 as r2
from fnloop.metrics.regression import rmse as rmse
