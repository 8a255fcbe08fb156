"""A model without its tensors, and how to run code on it with a state's tensors in place."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import optree
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fnloop.trees import is_tree
from fnloop.trees.paths import tree_items

T = TypeVar("T")


class Skeleton(Protocol):
    """What `State.skeleton` offers. It compares and hashes by what it is, not by identity."""

    trainable: tuple[str, ...]
    """Names of the parameters that require gradients, in the model's order."""

    def call(
        self,
        function: Callable[[Any], T],
        params: dict[str, Tensor],
        buffers: dict[str, Tensor],
        training: bool,
    ) -> tuple[T, dict[str, Tensor]]:
        """Return ``function(model)``, and the buffers after it; nothing given is changed."""
        ...

    def build(self, params: dict[str, Tensor], buffers: dict[str, Tensor]) -> Any:
        """A new model that owns copies of these tensors."""
        ...

    def __str__(self) -> str: ...


_mode = threading.local()


def training() -> bool:
    """Whether the model runs in training mode now; for models that are trees.

    True inside a training stage and outside any stage; False in `fl.evaluate`, `fl.predict` and
    `fl.validate`.

    >>> training()
    True
    """
    return _training_now()


def _training_now() -> bool:
    return getattr(_mode, "training", True)


class ModuleSkeleton:
    """The skeleton of an ``nn.Module``: a private copy of it, with placeholders for its tensors."""

    def __init__(self, module: nn.Module) -> None:
        self.module = _private_copy(module)
        self._lock = threading.RLock()
        modules = dict(self.module.named_modules())
        self._modules = [(child, child.training or not module.training) for child in modules.values()]
        self._original_modes = [child.training for child in modules.values()]
        self._training = False
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
            type(module),
            tuple((name, type(child), child.extra_repr()) for name, child in modules.items()),
            tuple(names.values()),
            self.trainable,
            tuple(buffer_names.values()),
        )
        self._hash = hash(self._identity)
        self._empty()

    def _empty(self) -> None:
        """Let go of the tensors: placeholders keep shape and dtype only."""
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
        # The tensors go straight into the modules' own dicts: functional_call costs 50 us more.
        # What stood there before comes back afterwards, so that calls nest and nothing is kept alive.
        with self._lock:
            before = [tensors[key] for tensors, key, _ in self._places]
            modes = self._training, _training_now()
            fresh = {name: buffer.clone() for name, buffer in buffers.items()}
            self._depth += 1
            try:
                self._set_mode(training)
                _mode.training = training
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
                if self._depth:
                    self._set_mode(modes[0])
                _mode.training = modes[1]
                for (tensors, key, _), tensor in zip(self._places, before, strict=True):
                    tensors[key] = tensor

    def _set_mode(self, training: bool) -> None:
        if training != self._training:
            self._training = training
            for child, trains in self._modules:
                child.training = training and trains

    def build(self, params: dict[str, Tensor], buffers: dict[str, Tensor]) -> nn.Module:
        with self._lock:
            module = copy.deepcopy(self.module)
        ours = dict(self.module.named_modules())
        copies: dict[str, Tensor] = {}
        for name, value in params.items():
            copies[name] = nn.Parameter(value.detach().clone(), requires_grad=name in self.trainable)
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

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, ModuleSkeleton) and self._identity == other._identity
        )

    def __hash__(self) -> int:
        return self._hash

    def __deepcopy__(self, memo: dict[int, Any]) -> ModuleSkeleton:
        return self  # immutable between calls

    def __str__(self) -> str:
        return type(self.module).__name__

    __repr__ = __str__


class TreeSkeleton:
    """The skeleton of a model that is a tree with ``__call__``: its structure and static leaves."""

    def __init__(self, model: Any) -> None:
        self._structure = optree.tree_structure(model)
        self._kind = type(model).__name__
        self._leaves: list[tuple[str | None, Any]] = []  # (tensor's name, or None; static value)
        self._params: list[str] = []
        first: dict[int, str] = {}
        for path, leaf in tree_items(model):
            if isinstance(leaf, Tensor):
                name = first.setdefault(id(leaf), path.replace("/", "."))
                if (leaf.is_floating_point() or leaf.is_complex()) and name not in self._params:
                    self._params.append(name)
                self._leaves.append((name, None))
            else:
                self._leaves.append((None, leaf))
        self.trainable = tuple(self._params)

    def call(
        self,
        function: Callable[[Any], T],
        params: dict[str, Tensor],
        buffers: dict[str, Tensor],
        training: bool,
    ) -> tuple[T, dict[str, Tensor]]:
        before = _training_now()
        _mode.training = training
        try:
            return function(self._assemble({**buffers, **params})), dict(buffers)
        finally:
            _mode.training = before

    def build(self, params: dict[str, Tensor], buffers: dict[str, Tensor]) -> Any:
        return self._assemble({n: t.detach().clone() for n, t in {**buffers, **params}.items()})

    def _assemble(self, tensors: dict[str, Tensor]) -> Any:
        leaves = [value if name is None else tensors[name] for name, value in self._leaves]
        return optree.tree_unflatten(self._structure, leaves)

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, TreeSkeleton)
            and self._structure == other._structure
            and self._leaves == other._leaves
        )

    def __hash__(self) -> int:
        return hash((self._structure, tuple(name for name, _ in self._leaves)))

    def __str__(self) -> str:
        return self._kind

    __repr__ = __str__


def dissect(model: Any) -> tuple[Skeleton, dict[str, Tensor], dict[str, Tensor]]:
    """Take a model apart: its skeleton, and copies of its parameters and of its buffers."""
    if isinstance(model, nn.Module):
        _refuse(model)
        params = {name: p.detach().clone() for name, p in model.named_parameters()}
        buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
        return ModuleSkeleton(model), params, buffers
    skeleton = TreeSkeleton(model)
    tensors: dict[str, Tensor] = {}
    for path, leaf in tree_items(model):
        if isinstance(leaf, Tensor):
            tensors.setdefault(path.replace("/", "."), leaf)
    names = {name for name, _ in skeleton._leaves if name is not None}
    copies = {name: t.detach().clone() for name, t in tensors.items() if name in names}
    params = {name: copies[name] for name in skeleton.trainable}
    return skeleton, params, {name: t for name, t in copies.items() if name not in params}


def is_model(value: Any) -> bool:
    """Whether `value` is a model (an ``nn.Module``, or a tree that can be called)."""
    return isinstance(value, nn.Module) or (is_tree(value) and callable(value))


def _private_copy(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise TypeError(
            f"fnloop keeps a private copy of your model, and copy.deepcopy({type(module).__name__}) "
            f"failed: {error}. The usual cause is an attribute that cannot be copied (a lock, an open "
            "file, a tensor that is the result of a computation, old-style weight_norm); keep it "
            "outside the module, or pass a function that builds the model."
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
            "The model has lazy layers that have not seen a batch yet, so their shapes are unknown. "
            "Run one batch through it first: model(x)."
        )
    kinds: Sequence[str] = [base.__name__ for base in type(module).__mro__]
    wrapper = next((name for name in _WRAPPERS if name in kinds), None)
    if wrapper:
        raise TypeError(
            f"The model is wrapped in {wrapper}, which works by changing the module and its "
            "gradients behind the scenes: under pure functions it would give wrong gradients. "
            "Pass the plain module."
        )
