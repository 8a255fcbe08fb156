"""The loop: run, fit, evaluate, predict; callbacks and effects."""

from fnloop.loop.early_stopping import early_stopping as early_stopping
from fnloop.loop.evaluate import evaluate as evaluate
from fnloop.loop.evaluate import predict as predict
from fnloop.loop.every import every as every
from fnloop.loop.fit import fit as fit
from fnloop.loop.history import History as History
from fnloop.loop.progress import progress as progress
from fnloop.loop.replay import Replay as Replay
from fnloop.loop.replay import replay as replay
from fnloop.loop.run import run as run
from fnloop.loop.validate import validate as validate
