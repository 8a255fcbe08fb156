"""Training pipelines for PyTorch as pure functions: ``(state, batch) -> (state, metrics)``.

What there is, in reading order, is in ``__init__.pyi``. Each name is imported when it is first
used, so that the command line can speak before it imports torch, which takes seconds.
"""

from fnloop.names.lazy import attach as _attach

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = _attach(__name__, __file__)
