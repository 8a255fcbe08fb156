"""Values: the state, keys, cursor, metrics and gradients. Data only."""

from fnloop.values.cursor import Cursor as Cursor
from fnloop.values.cursor import epoch_of as epoch_of
from fnloop.values.cursor import is_due as is_due
from fnloop.values.donated import DonatedError as DonatedError
from fnloop.values.grads import Grads as Grads
from fnloop.values.key import fold as fold
from fnloop.values.merging import find as find
from fnloop.values.merging import merge as merge
from fnloop.values.merging import merge_all as merge_all
from fnloop.values.merging import numbers as numbers
from fnloop.values.merging import numbers_of as numbers_of
from fnloop.values.metrics import Last as Last
from fnloop.values.metrics import Max as Max
from fnloop.values.metrics import Mean as Mean
from fnloop.values.metrics import Metric as Metric
from fnloop.values.metrics import Metrics as Metrics
from fnloop.values.metrics import Min as Min
from fnloop.values.metrics import Stop as Stop
from fnloop.values.metrics import Sum as Sum
from fnloop.values.metrics import stop as stop
from fnloop.values.micro import Micro as Micro
from fnloop.values.mode import training as training
from fnloop.values.start import choose_params as choose_params
from fnloop.values.start import start as start
from fnloop.values.start import to_module as to_module
from fnloop.values.state import State as State
