"""Data: joining examples of many lengths, orders and folds of examples, sources of batches."""

from fnloop.data.beside import together as together
from fnloop.data.buckets import BucketSampler as BucketSampler
from fnloop.data.concatenating import concat as concat
from fnloop.data.cross_validation import folds as folds
from fnloop.data.grouping import group as group
from fnloop.data.limiting import limit as limit
from fnloop.data.mixing import mix as mix
from fnloop.data.packing import pack as pack
from fnloop.data.padding import pad as pad
from fnloop.data.permutation import permute as permute
from fnloop.data.prefetching import prefetch as prefetch
from fnloop.names.suggestions import suggesting as _suggesting
from fnloop.values.cursor import Cursor as Cursor
from fnloop.values.micro import Micro as Micro
from fnloop.values.packed_rows import PackedRows as PackedRows
from fnloop.values.padded import Padded as Padded

__getattr__ = _suggesting(__name__)
