"""Find hyperparameters by trying: a learning rate, a batch size."""

from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.tuning.batch_size_finder import find_batch_size as find_batch_size
from fnloop.tuning.batch_size_search import Attempt as Attempt
from fnloop.tuning.batch_size_search import BatchSizeSearch as BatchSizeSearch
from fnloop.tuning.lr_finder import find_lr as find_lr
from fnloop.tuning.lr_search import LrSearch as LrSearch

__getattr__ = _suggesting(__name__)
