"""Transforms of whole steps: a stage in, a stage out."""

from fnloop.transforms.compile import CompileError as CompileError
from fnloop.transforms.compile import compile as compile
