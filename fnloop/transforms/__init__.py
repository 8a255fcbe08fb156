"""Transforms of whole steps: a stage in, a stage out."""

from fnloop.transforms.compile import compile as compile
from fnloop.transforms.errors import CompileError as CompileError
