"""Call something before and after each module of a model."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator
from typing import Any

from torch import nn
from torch.profiler import record_function

from fnloop.profiling.names_in_trace import MODULE, trace_name
from fnloop.values.module_skeleton import ModuleSkeleton


@contextlib.contextmanager
def following(
    skeleton: Any, enter: Callable[[str, str], None], leave: Callable[[], None]
) -> Generator[None]:
    """Within the block, modules of the state's private copy report where they begin and end.

    Args:
        skeleton: Of the state. A model that is no ``nn.Module`` has no modules.
        enter: Called with the path of a module, and the name of its class.
        leave: Called when it returns, or raises.
    """
    if not isinstance(skeleton, ModuleSkeleton):
        yield
        return

    def before(path: str, module: nn.Module, inputs: Any) -> None:
        enter(path or "model", type(module).__name__)

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        leave()

    with contextlib.ExitStack() as hooks:
        hooks.callback(skeleton.watching().retake)  # when the hooks are gone
        for path, module in skeleton.module.named_modules():
            hook = functools.partial(before, path)
            hooks.callback(module.register_forward_pre_hook(hook).remove)
            handle = module.register_forward_hook(after, always_call=True)
            hooks.callback(handle.remove)
        skeleton.watching().retake()
        yield


class Ranges:
    """Modules as ranges in a trace of PyTorch's profiler: give its methods to `following`."""

    def __init__(self) -> None:
        self._open: list[record_function] = []

    def enter(self, path: str, kind: str) -> None:
        """A module begins."""
        new = record_function(trace_name(MODULE, f"{path} ({kind})"))
        new.__enter__()
        self._open.append(new)

    def leave(self) -> None:
        """It ends."""
        self._open.pop().__exit__(None, None, None)
