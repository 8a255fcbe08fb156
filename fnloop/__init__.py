"""Training pipelines for PyTorch as pure functions: ``(state, batch) -> (state, metrics)``."""

__version__ = "0.1.0"

# Trees
from fnloop.trees import combine as combine
from fnloop.trees import partition as partition
from fnloop.trees import static as static
from fnloop.trees import tree as tree
from fnloop.trees import tree_at as tree_at
from fnloop.trees import tree_diff as tree_diff
from fnloop.trees import tree_equal as tree_equal
from fnloop.trees import tree_leaves as tree_leaves
from fnloop.trees import tree_map as tree_map
from fnloop.trees import tree_paths as tree_paths
from fnloop.trees import tree_show as tree_show

# The state
from fnloop.values import Cursor as Cursor
from fnloop.values import Grads as Grads
from fnloop.values import Micro as Micro
from fnloop.values import State as State
from fnloop.values import fold as fold
from fnloop.values import to_module as to_module
from fnloop.values import training as training

# Stages
from fnloop.stages import Callback as Callback
from fnloop.stages import GradStage as GradStage
from fnloop.stages import Stage as Stage
from fnloop.stages import StepStage as StepStage
from fnloop.stages import accumulate as accumulate
from fnloop.stages import amp as amp
from fnloop.stages import compose as compose
from fnloop.stages import ema as ema
from fnloop.stages import grad as grad
from fnloop.stages import guard as guard
from fnloop.stages import nonfinite as nonfinite
from fnloop.stages import pipe as pipe
from fnloop.stages import scale as scale
from fnloop.stages import spike as spike
from fnloop.stages import stage as stage
from fnloop.stages import update as update

# Optimizers and gradient transforms
from fnloop.optim import Optimizer as Optimizer
from fnloop.optim import adadelta as adadelta
from fnloop.optim import adafactor as adafactor
from fnloop.optim import adagrad as adagrad
from fnloop.optim import adam as adam
from fnloop.optim import adamax as adamax
from fnloop.optim import adamw as adamw
from fnloop.optim import add_decayed_weights as add_decayed_weights
from fnloop.optim import by_label as by_label
from fnloop.optim import chain as chain
from fnloop.optim import clip_by_norm as clip_by_norm
from fnloop.optim import clip_by_value as clip_by_value
from fnloop.optim import freeze as freeze
from fnloop.optim import from_torch as from_torch
from fnloop.optim import lamb as lamb
from fnloop.optim import lion as lion
from fnloop.optim import masked as masked
from fnloop.optim import muon as muon
from fnloop.optim import nadam as nadam
from fnloop.optim import radam as radam
from fnloop.optim import rmsprop as rmsprop
from fnloop.optim import scale_by as scale_by
from fnloop.optim import sgd as sgd

# Schedules
from fnloop.optim import Schedule as Schedule
from fnloop.optim import constant as constant
from fnloop.optim import cosine as cosine
from fnloop.optim import exponential as exponential
from fnloop.optim import inverse_sqrt as inverse_sqrt
from fnloop.optim import join as join
from fnloop.optim import linear as linear
from fnloop.optim import one_cycle as one_cycle
from fnloop.optim import polynomial as polynomial
from fnloop.optim import step_decay as step_decay
from fnloop.optim import warmup_stable_decay as warmup_stable_decay

# Transforms of whole steps
from fnloop.transforms import CompileError as CompileError
from fnloop.transforms import compile as compile
from fnloop.values import DonatedError as DonatedError

# Metrics
from fnloop.values import Last as Last
from fnloop.values import Max as Max
from fnloop.values import Mean as Mean
from fnloop.values import Metric as Metric
from fnloop.values import Min as Min
from fnloop.values import Sum as Sum
from fnloop.values import merge as merge
from fnloop.values import numbers as numbers
from fnloop.values import stop as stop
from fnloop.metrics import accuracy as accuracy
from fnloop.metrics import confusion as confusion
from fnloop.metrics import f1 as f1
from fnloop.metrics import from_torchmetrics as from_torchmetrics
from fnloop.metrics import mae as mae
from fnloop.metrics import mse as mse
from fnloop.metrics import perplexity as perplexity
from fnloop.metrics import r2 as r2
from fnloop.metrics import rmse as rmse
from fnloop.metrics import top_k_accuracy as top_k_accuracy

# Data
from fnloop.data import Batches as Batches
from fnloop.data import Data as Data
from fnloop.data import permute as permute
from fnloop.data import prefetch as prefetch

# Effects
from fnloop.effects import Effect as Effect
from fnloop.effects import Run as Run
from fnloop.effects import effect as effect

# The loop
from fnloop.loop import History as History
from fnloop.loop import early_stopping as early_stopping
from fnloop.loop import evaluate as evaluate
from fnloop.loop import every as every
from fnloop.loop import fit as fit
from fnloop.loop import predict as predict
from fnloop.loop import progress as progress
from fnloop.loop import Replay as Replay
from fnloop.loop import replay as replay
from fnloop.loop import run as run
from fnloop.loop import validate as validate

# Checkpoints
from fnloop.store import CheckpointError as CheckpointError
from fnloop.store import best as best
from fnloop.store import checkpoint as checkpoint
from fnloop.store import latest as latest
from fnloop.store import load as load
from fnloop.store import load_state_dict as load_state_dict
from fnloop.store import read_manifest as read_manifest
from fnloop.store import save as save

# Trackers
from fnloop.track import CSV as CSV
from fnloop.track import JSONL as JSONL
from fnloop.track import Aim as Aim
from fnloop.track import TensorBoard as TensorBoard
from fnloop.track import Tracker as Tracker
from fnloop.track import track as track

# The command line
from fnloop.cli.recipe import Recipe as Recipe
