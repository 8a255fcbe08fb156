"""Data: batches as a function of the cursor, and whatever else can be iterated."""

from fnloop.data.batches import Batches as Batches
from fnloop.data.bundle import Data as Data
from fnloop.data.permute import permute as permute
from fnloop.data.prefetch import prefetch as prefetch
from fnloop.data.resumed import resumed_index as resumed_index
from fnloop.data.sources import Source as Source
from fnloop.data.sources import as_source as as_source
from fnloop.data.sources import one_epoch as one_epoch
