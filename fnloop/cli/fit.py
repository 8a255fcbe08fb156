"""``fnloop fit`` and ``fnloop resume``."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fnloop.cli import config, parsers, report
from fnloop.cli.errors import Problem, describe, shown, usage
from fnloop.cli.flags import Flags, configs_in, parse, recipe_of
