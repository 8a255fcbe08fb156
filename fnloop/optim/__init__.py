"""Optimizers, gradient transforms, and combinators of them."""

from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.optim.added_noise import noise as noise
from fnloop.optim.algorithms.adadelta import adadelta as adadelta
from fnloop.optim.algorithms.adafactor import adafactor as adafactor
from fnloop.optim.algorithms.adagrad import adagrad as adagrad
from fnloop.optim.algorithms.adam import adam as adam
from fnloop.optim.algorithms.adam import adamw as adamw
from fnloop.optim.algorithms.adamax import adamax as adamax
from fnloop.optim.algorithms.lamb import lamb as lamb
from fnloop.optim.algorithms.lbfgs import lbfgs as lbfgs
from fnloop.optim.algorithms.lion import lion as lion
from fnloop.optim.algorithms.muon import muon as muon
from fnloop.optim.algorithms.nadam import nadam as nadam
from fnloop.optim.algorithms.prodigy import prodigy as prodigy
from fnloop.optim.algorithms.radam import radam as radam
from fnloop.optim.algorithms.rmsprop import rmsprop as rmsprop
from fnloop.optim.algorithms.sgd import sgd as sgd
from fnloop.optim.algorithms.soap import soap as soap
from fnloop.optim.averaging import schedule_free as schedule_free
from fnloop.optim.base import Optimizer as Optimizer
from fnloop.optim.chains import chain as chain
from fnloop.optim.gradient_norms import norms as norms
from fnloop.optim.labels import by_label as by_label
from fnloop.optim.masks import masked as masked
from fnloop.optim.torch_bridge import from_torch as from_torch
from fnloop.optim.transforms import add_decayed_weights as add_decayed_weights
from fnloop.optim.transforms import clip_by_norm as clip_by_norm
from fnloop.optim.transforms import clip_by_value as clip_by_value
from fnloop.optim.transforms import freeze as freeze
from fnloop.optim.transforms import scale_by as scale_by

__getattr__ = _suggesting(__name__)
