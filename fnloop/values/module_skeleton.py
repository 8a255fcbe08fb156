"""The skeleton of an ``nn.Module``."""

from __future__ import annotations

import copy
import operator
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from fnloop.values.mode import set_training
from fnloop.values.mode import training as training_now

T = TypeVar("T")


class ModuleSkeleton:
    """The skeleton of an ``nn.Module``: a private copy with meta tensors as placeholders."""

    def __init__(self, module: nn.Module) -> None:
        _refuse(module)
        self.module = _private_copy(module)
        self._lock = threading.RLock()
        modules = dict(self.module.named_modules())
        self._modules = [
            (child, child.training or not module.training) for child in modules.values()
        ]
        self._original_modes = [child.training for child in modules.values()]
        self._training: bool | None = False
        self._depth = 0
        self.module.eval()

        names = {id(p): name for name, p in self.module.named_parameters()}
        buffer_names = {id(b): name for name, b in self.module.named_buffers()}
        shared = {**names, **buffer_names}
        self._param_places: list[tuple[dict[str, Any], str, str]] = []
        self._buffer_places: list[tuple[dict[str, Any], str, str]] = []
        for child in modules.values():
            for places, tensors in (
                (self._param_places, child._parameters),
                (self._buffer_places, child._buffers),
            ):
                for key, tensor in tensors.items():
                    if tensor is not None:
                        places.append((tensors, key, shared[id(tensor)]))
        self._places = [*self._param_places, *self._buffer_places]
        self.trainable = tuple(n for n, p in self.module.named_parameters() if p.requires_grad)
        self._identity = (
            tuple((name, _kind(child), child.extra_repr()) for name, child in modules.items()),
            tuple(names.values()),
            self.trainable,
            tuple(buffer_names.values()),
        )
        self._hash = hash(self._identity)
        self._empty()
        self._placeholders = self._standing()
        # Attributes of modules that may assign them in forward. torch's own modules do not, unless
        # a forward pre-hook does.
        self._attributes = [
            (child.__dict__, dict(child.__dict__))
            for child in modules.values()
            if not type(child).__module__.startswith("torch.nn.modules") or child._forward_pre_hooks
        ]
        self._unset_buffers = [
            (child._buffers, key, f"{name}.{key}".lstrip("."))
            for name, child in modules.items()
            for key, buffer in child._buffers.items()
            if buffer is None
        ]

    def _empty(self) -> None:
        """Replace the tensors by placeholders, which keep only shape and dtype."""
        placeholders: dict[str, Tensor] = {}
        for tensors, key, name in self._places:
            if name not in placeholders:
                placeholders[name] = _placeholder(tensors[key])
            tensors[key] = placeholders[name]

    def call(
        self,
        function: Callable[[Any], T],
        params: dict[str, Tensor],
        buffers: dict[str, Tensor],
        training: bool,
    ) -> tuple[T, dict[str, Tensor]]:
        # Write the tensors directly into the modules' dicts: functional_call takes 50 us more.
        # Afterwards restore the placeholders, so that no tensor stays alive; in a nested call,
        # restore the outer call's tensors.
        with self._lock:
            nested = self._depth > 0
            before = self._standing() if nested else self._placeholders
            modes = self._training, training_now()
            fresh = {name: buffer.clone() for name, buffer in buffers.items()} if buffers else {}
            self._depth += 1
            try:
                if training != self._training:
                    self._set_mode(training)
                set_training(training)
                for tensors, key, name in self._param_places:
                    tensors[key] = params[name]
                for tensors, key, name in self._buffer_places:
                    tensors[key] = fresh[name]
                result = function(self.module)
                for tensors, key, name in reversed(self._buffer_places):
                    fresh[name] = tensors[key].detach()  # written in place, or assigned anew
                return result, fresh
            finally:
                self._depth -= 1
                if nested and self._training != modes[0]:
                    self._set_mode(bool(modes[0]))
                set_training(modes[1])
                for (tensors, key, _), tensor in zip(self._places, before, strict=True):
                    tensors[key] = tensor
                if not nested:
                    self._forget()

    def _forget(self) -> None:
        """Undo attribute assignments made by the model: only the state's tensors persist."""
        for own, kept in self._attributes:
            if len(own) == len(kept) and all(map(operator.is_, own.values(), kept.values())):
                continue
            mode = own["training"]
            own.clear()
            own.update(kept)
            own["training"] = mode
        for buffers, key, name in self._unset_buffers:
            if buffers[key] is not None:
                buffers[key] = None
                raise ValueError(
                    f"The model's forward assigns its buffer {name!r}, which was registered as "
                    "None. A buffer in the state must be a tensor from the start: "
                    f'self.register_buffer("{key}", torch.zeros(...)).'
                )

    def _standing(self) -> list[Any]:
        return [tensors[key] for tensors, key, _ in self._places]

    def _set_mode(self, training: bool) -> None:
        self._training = None  # until all of it is done: an exception may come in between
        for child, trains in self._modules:
            child.training = training and trains
        self._training = training

    def build(self, params: dict[str, Tensor], buffers: dict[str, Tensor]) -> nn.Module:
        with self._lock:
            module = copy.deepcopy(self.module)
        ours = dict(self.module.named_modules())
        copies: dict[str, Tensor] = {}
        for name, value in params.items():
            copies[name] = nn.Parameter(
                value.detach().clone(), requires_grad=name in self.trainable
            )
        copies.update({name: value.detach().clone() for name, value in buffers.items()})
        theirs: dict[int, dict[str, Any]] = {
            id(tensors): new
            for child, twin in zip(ours.values(), module.modules(), strict=True)
            for tensors, new in (
                (child._parameters, twin._parameters),
                (child._buffers, twin._buffers),
            )
        }
        for tensors, key, name in self._places:
            theirs[id(tensors)][key] = copies[name]
        for child, mode in zip(module.modules(), self._original_modes, strict=True):
            child.training = mode
        return module

    def behaves_like(self, other: Any) -> bool:
        if self is other:
            return True
        modules, theirs = self.module.modules(), other.module.modules()
        return (
            self == other
            and [trains for _, trains in self._modules] == [trains for _, trains in other._modules]
            and all(_alike(a, b) for a, b in zip(modules, theirs, strict=True))
        )

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, ModuleSkeleton) and self._identity == other._identity
        )

    def __hash__(self) -> int:
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update({**values, "_lock": threading.RLock()})

    def __deepcopy__(self, memo: dict[int, Any]) -> ModuleSkeleton:
        return self  # immutable between calls

    def __str__(self) -> str:
        return type(self.module).__name__

    __repr__ = __str__


def _alike(module: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have equal attributes; dicts, such as torch's own, are not compared."""
    own, theirs = (
        {k: v for k, v in m.__dict__.items() if k != "training" and not isinstance(v, dict)}
        for m in (module, other)
    )
    return own.keys() == theirs.keys() and all(_same(v, theirs[k]) for k, v in own.items())


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) or type(a) is not type(b):
        return False
    try:
        return bool(a == b)
    except Exception:
        return False


def _kind(module: nn.Module) -> type:
    """The module's class; for a parametrized module, the original class."""
    return parametrize.type_before_parametrizations(module)


def _private_copy(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise TypeError(
            "fnloop keeps a private copy of your model, and "
            f"copy.deepcopy({type(module).__name__}) failed: {error}. The usual cause is an "
            "attribute that cannot be copied (a lock, an open file, a tensor that is the result "
            "of a computation, old-style weight_norm); keep it outside the module, or pass a "
            "function that builds the model."
        ) from error


def _placeholder(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


_WRAPPERS = ("DistributedDataParallel", "FSDPModule", "FullyShardedDataParallel", "OptimizedModule")


def _refuse(module: nn.Module) -> None:
    if any(is_lazy(p) for p in module.parameters()):
        raise ValueError(
            "The model has uninitialized lazy layers, so their shapes are unknown. Run one batch "
            "through it first: model(x)."
        )
    kinds = [base.__name__ for base in type(module).__mro__]
    wrapper = next((name for name in _WRAPPERS if name in kinds), None)
    if wrapper:
        raise TypeError(
            f"The model is wrapped in {wrapper}, which changes the module and its gradients in "
            "place, so fnloop would compute wrong gradients. Pass the plain module."
        )
