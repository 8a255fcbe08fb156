"""Find hyperparameters by trying: a learning rate, a batch size, the best of many runs."""

from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.tuning.batch_size_finder import find_batch_size as find_batch_size
from fnloop.tuning.batch_size_search import Attempt as Attempt
from fnloop.tuning.batch_size_search import BatchSizeSearch as BatchSizeSearch
from fnloop.tuning.best_yet import best_states as best_states
from fnloop.tuning.best_yet import keep_best as keep_best
from fnloop.tuning.halving_result import Halving as Halving
from fnloop.tuning.halving_result import Rung as Rung
from fnloop.tuning.lineages import Lineage as Lineage
from fnloop.tuning.lineages import lineage as lineage
from fnloop.tuning.lr_finder import find_lr as find_lr
from fnloop.tuning.lr_search import LrSearch as LrSearch
from fnloop.tuning.successive import halving as halving

__getattr__ = _suggesting(__name__)
