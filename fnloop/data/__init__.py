"""Data: joining examples of many lengths, orders and folds of examples, sources of batches."""

from fnloop.data.buckets import BucketSampler as BucketSampler
from fnloop.data.cross_validation import folds as folds
from fnloop.data.padding import pad as pad
from fnloop.data.permutation import permute as permute
from fnloop.data.prefetching import prefetch as prefetch
from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.values.cursor import Cursor as Cursor
from fnloop.values.micro import Micro as Micro
from fnloop.values.padded import Padded as Padded

__getattr__ = _suggesting(__name__)
