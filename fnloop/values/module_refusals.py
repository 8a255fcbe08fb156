"""Models that cannot be run on the tensors of a state, and why."""

from __future__ import annotations

import types
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fnloop._torch.hooks import has_hooks
from fnloop.values.module_parts import ModuleParts
from fnloop.values.reached import MOST, inside, reached


def refuse_module(module: nn.Module) -> None:
    """Refuse a module that is lazy, scripted or wrapped, or contains one that is.

    Raises:
        TypeError: It is wrapped for distributed training, compiled, or scripted.
        ValueError: It has uninitialized lazy layers, parameters of another class, hooks of
            parameters, or sparse or quantized tensors.
    """
    for name, child in module.named_modules():
        where = f"The module {name!r} of the model" if name else "The model"
        kinds = [base.__name__ for base in type(child).__mro__]
        wrapper = next((kind for kind in _WRAPPERS if kind in kinds), None)
        if wrapper:
            raise TypeError(
                f"{where} is wrapped in {wrapper}, which changes the module and its gradients in "
                "place, so fnloop would compute wrong gradients. Pass the plain module."
            )
        if isinstance(child, torch.jit.ScriptModule):
            raise TypeError(
                f"{where} is a scripted or traced module ({type(child).__name__}), which keeps its "
                "tensors out of Python's reach, so fnloop cannot run it on the tensors of a state. "
                "Pass the module that it was made from; fl.compile makes it fast."
            )
    if any(is_lazy(p) for p in module.parameters()):
        raise ValueError(
            "The model has uninitialized lazy layers, so their shapes are unknown. Run one batch "
            "through it first: model(x)."
        )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        _refuse_layout(name, tensor)
    for name, p in module.named_parameters():
        if type(p) is not nn.Parameter and nn.Parameter in type(p).__mro__:
            raise ValueError(
                f"The parameter {name!r} is a {type(p).__name__}, and a state holds plain tensors: "
                "neither the model nor a function that chooses parameters would see its class. Use "
                "nn.Parameter, with what is to be known of it as an attribute (p.kind = ...), "
                "which is kept."
            )
        if has_hooks(p):
            raise ValueError(
                f"The parameter {name!r} has a hook (register_hook, or "
                "register_post_accumulate_grad_hook), which would not run: parameters are in the "
                "state, and tensors there have no hooks. Change gradients in a stage between "
                'fl.grad and fl.update, by fl.stage(function, "grad").'
            )


def _refuse_layout(name: str, tensor: Tensor) -> None:
    """Refuse what is not dense, which can be neither compiled nor saved."""
    if tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_nested:
        return
    kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
    is_a = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else tensor.layout
    raise ValueError(
        f"The {kind} {name!r} is {is_a}, and a state holds dense tensors. Keep it dense (to_dense, "
        "dequantize), or in parts that are: the indices of a sparse tensor as a buffer, and its "
        "values as a buffer or a parameter, of which forward makes the tensor "
        "(torch.sparse_coo_tensor(indices, values, size))."
    )


_WRAPPERS = ("DistributedDataParallel", "FSDPModule", "FullyShardedDataParallel", "OptimizedModule")


def refuse_parts(parts: ModuleParts, original: nn.Module) -> None:
    """Refuse a copy that keeps what cannot be put back, or reaches what it was made from.

    Args:
        parts: What the copy keeps.
        original: The module that it was made from.

    Raises:
        ValueError: It does.
    """
    _refuse_references(parts, original)
    _refuse_fixed(parts)
    _refuse_iterators(parts)


def _refuse_references(parts: ModuleParts, original: nn.Module) -> None:
    """Refuse functions whose closure, and weak references whose target, is the original."""
    tensors = (*original.parameters(), *original.buffers())
    originals = {id(thing) for thing in (*original.modules(), *tensors)}
    for path, reference in parts.references:
        found = _original_in(reference, originals)
        if found is not None:
            raise ValueError(
                f"The model keeps, as {path}, {_described(reference)} that leads to the model "
                f"itself ({found}). fnloop works on a private copy of the model, and Python copies "
                "no functions: this one would go on using the original, whose parameters never "
                "train. Use the module that a hook is given, a method (self.method in place of "
                "lambda: ... self ...), or functools.partial(function, self): these are copied."
            )


def _refuse_fixed(parts: ModuleParts) -> None:
    """Refuse parameters and buffers in tuples, where those of a state cannot be put."""
    for path, name in parts.fixed:
        raise ValueError(
            f"The model keeps its tensor {name!r} a second time, as {path}, in a tuple, a set, a "
            "functools.partial or an object with __slots__, where the state's own cannot take its "
            "place: it would stay as it is now. Use a list, or make it in forward."
        )


def _refuse_iterators(parts: ModuleParts) -> None:
    """Refuse iterators, which cannot be put back to where they were."""
    for path, iterator in parts.iterators:
        raise ValueError(
            f"The model keeps an iterator ({type(iterator).__name__}), as {path}, which moves on "
            "with each call and cannot be put back. A counter is a buffer: "
            'self.register_buffer("calls", torch.zeros((), dtype=torch.int64)).'
        )


def _described(reference: Any) -> str:
    if isinstance(reference, weakref.ref):
        return "a weak reference"
    return f"the function {reference.__qualname__}"


def _original_in(reference: Any, originals: set[int]) -> str | None:
    """How a function or weak reference leads to one of the originals; None if it does not."""
    if isinstance(reference, weakref.ref):
        target = reference()  # recurrent layers keep weak references to tensors, and renew them
        return type(target).__name__ if _is_in(target, originals, nn.Module) else None
    waiting, seen = list(reached(reference)), set[int]()
    while waiting and len(seen) < MOST:
        name, value = waiting.pop()
        if _is_in(value, originals, (nn.Module, Tensor)):
            return f"{name}, a {type(value).__name__}"
        if id(value) in seen or isinstance(value, (nn.Module, Tensor, type, types.ModuleType)):
            continue
        seen.add(id(value))
        waiting += [(name, each) for each in inside(value)]
    return None


def _is_in(value: Any, originals: set[int], kinds: Any) -> bool:
    return id(value) in originals and isinstance(value, kinds)
