"""Training pipelines for PyTorch as pure functions: ``(state, batch) -> (state, metrics)``."""

__version__: str

# Trees
from fnloop.trees.at import combine as combine
from fnloop.trees.at import partition as partition
from fnloop.trees.nodes import static as static
from fnloop.trees.nodes import tree as tree
from fnloop.trees.at import tree_at as tree_at
from fnloop.trees.equal import tree_diff as tree_diff
from fnloop.trees.equal import tree_equal as tree_equal
from fnloop.trees.nodes import tree_leaves as tree_leaves
from fnloop.trees.nodes import tree_map as tree_map
from fnloop.trees.show import tree_show as tree_show

# The state
from fnloop.values.grads import Grads as Grads
from fnloop.values.state import State as State
from fnloop.values.tensors import Tensors as Tensors
from fnloop.values.randomness import randomness as randomness
from fnloop.values.start import to_module as to_module
from fnloop.values.mode import training as training

# Stages
from fnloop.stages.accumulate import accumulate as accumulate
from fnloop.stages.amp import amp as amp
from fnloop.stages.ema import ema as ema
from fnloop.stages.grad import grad as grad
from fnloop.stages.guard import guard as guard
from fnloop.stages.pipe import pipe as pipe
from fnloop.stages.scale import scale as scale
from fnloop.stages.sequence import sequence as sequence
from fnloop.stages.lift import stage as stage
from fnloop.stages.update import update as update
from fnloop import rules as rules

# Optimizers and gradient transforms
from fnloop import optim as optim

# Schedules
from fnloop import schedules as schedules

# Transforms of whole steps
from fnloop.transforms.compile import compile as compile
from fnloop.transforms.population import ensemble as ensemble
from fnloop.transforms.population import sweep as sweep
from fnloop.transforms.unroll import unroll as unroll
from fnloop.transforms.summary import summary as summary
from fnloop.values.stacked import member as member

# Schemes
from fnloop import schemes as schemes

# Many processes
from fnloop.distributed.mesh import mesh as mesh
from fnloop.transforms.shard import shard as shard
from fnloop.transforms.shard import place as place
from fnloop.transforms.shard import gather as gather

# Metrics
from fnloop.values.metrics import Last as Last
from fnloop.values.metrics import Max as Max
from fnloop.values.metrics import Mean as Mean
from fnloop.values.metrics import Min as Min
from fnloop.values.metrics import Sum as Sum
from fnloop.values.metrics import stop as stop
from fnloop import metrics as metrics

# Data
from fnloop.data.batches import Batches as Batches
from fnloop.data.bundle import Data as Data
from fnloop import data as data

# Effects
from fnloop.effects.effect import effect as effect

# The loop
from fnloop.loop.history import History as History
from fnloop.loop.deterministic import deterministic as deterministic
from fnloop.loop.early_stopping import early_stopping as early_stopping
from fnloop.loop.evaluate import evaluate as evaluate
from fnloop.loop.every import every as every
from fnloop.loop.fit import fit as fit
from fnloop.loop.predict import predict as predict
from fnloop.loop.statistics import refresh_batchnorm as refresh_batchnorm
from fnloop.loop.progress import progress as progress
from fnloop.loop.exploiting import population as population
from fnloop.loop.plateau import reduce_on_plateau as reduce_on_plateau
from fnloop.replays.replay import replay as replay
from fnloop.loop.run import run as run
from fnloop.loop.validate import validate as validate

# Tuning
from fnloop.profiling.profile import profile as profile
from fnloop import tuning as tuning

# Checkpoints
from fnloop.store.folders import best as best
from fnloop.store.checkpoint import checkpoint as checkpoint
from fnloop.store.folders import latest as latest
from fnloop.store.load import load as load
from fnloop.store.save import save as save
from fnloop import store as store

# Trackers
from fnloop import trackers as trackers
from fnloop.trackers.track import track as track

# The command line
from fnloop.cli.recipe import Recipe as Recipe

# Bringing what you have
from fnloop import lightning as lightning

# Base classes for your own, and errors
from fnloop import base as base
from fnloop import errors as errors

# Testing
from fnloop import testing as testing
