"""``load_state_dict``: start from weights of another program."""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, empty_like

from fnloop._torch.inference import outside_inference
from fnloop.names.keywords import explained
from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.external_weights import read_weights
from fnloop.store.fresh import refreshed
from fnloop.trees.equal import table, tree_equal
from fnloop.trees.paths import tree_paths
from fnloop.trees.show import printable, short
from fnloop.values.module_skeleton import ModuleSkeleton
from fnloop.values.state import State

_log = logging.getLogger("fnloop")

_PREFIXES = ("module.", "_orig_mod.", "model.")  # of DDP, of torch.compile, of Lightning


@explained
def load_state_dict(
    source: str | os.PathLike[str] | Mapping[str, Any],
    like: State,
    *,
    prefix: str = "",
    strict: bool = True,
    cast: bool = False,
) -> State:
    """Put weights from another program into a state.

    The weights replace the parameters and buffers of `like`. Averages (`fl.ema`) that still equal
    the parameters of `like` start from the weights, too. The rest is kept: optimizer state, key,
    step. Usual: ``state = fl.store.load_state_dict("weights.pt", like=step.init(model))``.

    Files of ``torch.save`` are always read with ``weights_only=True``: one that holds more than
    tensors and plain containers is refused.

    Args:
        source: A file that ``torch.save`` wrote (a ``state_dict``, or a dict that has one under
            ``"state_dict"``, as a Lightning ``.ckpt`` has, ``"model_state_dict"``, ``"model"`` or
            ``"module"``), a ``.safetensors`` file, or a mapping of names to tensors.
        like: A fresh state: ``step.init(model)``.
        prefix: Take only names with this prefix, and remove it. The prefixes ``module.``
            (DistributedDataParallel), ``_orig_mod.`` (torch.compile) and ``model.`` (Lightning)
            are removed automatically if the names then fit; this is logged ("fnloop").
        strict: Refuse missing or unexpected names and other shapes; else load what fits, and warn.
        cast: Convert tensors of other dtypes; not complex ones to real, nor fractions to integers.

    Returns:
        The state, on the devices and with the strides of `like`; its tensors are copies.

    Raises:
        CheckpointError: The source cannot be read, is refused, or does not fit (with a table).

    >>> import torch, fnloop as fl
    >>> model = torch.nn.Linear(2, 1)
    >>> loss = lambda model, batch: model(batch).mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), fl.ema(0.9))
    >>> state = load_state_dict(model.state_dict(), like=step.init(torch.nn.Linear(2, 1)))
    >>> torch.equal(state.params["weight"], model.weight)
    True
    >>> torch.equal(state["ema"]["weight"], model.weight)
    True
    """
    if not isinstance(like, State):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            "load_state_dict puts weights into a State: like=step.init(model). It was given "
            f"{type(like).__name__}."
        )
    who = "the mapping" if isinstance(source, Mapping) else str(source)
    first, needed = _names(like)
    found = _renamed(read_weights(source), first, prefix, who)
    there = {**like.params, **like.buffers}
    wrong = _misfits(found, first, needed, there, cast)
    if wrong and strict:
        raise CheckpointError(_refusal(who, wrong))
    bad = {row[0] for row in wrong}
    loaded: dict[str, Tensor] = {}
    for name, tensor in found.items():
        if name in bad or name not in first:
            continue
        own = first[name]
        with outside_inference():
            placed = empty_like(there[own]).copy_(tensor)
        if own in loaded and not tree_equal(loaded[own], placed):
            raise CheckpointError(_untied(who, name, own))
        loaded.setdefault(own, placed)
    if not loaded:
        raise CheckpointError(f"Nothing of {who} fits:\n{_refusal(who, wrong)}")
    if wrong:
        names = ", ".join(printable(row[0]) for row in wrong[:8])
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        warnings.warn(f"{who}: not loaded, as they do not fit: {names}{more}.", stacklevel=2)
    if int(like.step.max()):
        warnings.warn(
            f"load_state_dict: `like` has {int(like.step.max())} steps behind it, and its memory "
            "(the optimizer's, averages) belongs to other weights. Take a fresh one: "
            "like=step.init(model).",
            stacklevel=2,
        )
    with outside_inference():
        return _put(like, loaded)


def _names(like: State) -> tuple[dict[str, str], set[str]]:
    """All names of tensors, tied ones too, to the names in the state; and the required names.

    Buffers that the module does not save are not required.
    """
    own = [*like.params, *like.buffers]
    skeleton = like.skeleton
    if not isinstance(skeleton, ModuleSkeleton):
        return {name: name for name in own}, set(own)
    module = skeleton.module
    tensors: dict[int, str] = {}
    first: dict[str, str] = {}
    for name, tensor in itertools.chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    ):
        first[name] = tensors.setdefault(id(tensor), name)
    saved = {first[name] for name in module.state_dict() if name in first}
    return first, saved


def _renamed(
    weights: dict[str, Tensor], first: Mapping[str, str], prefix: str, who: str
) -> dict[str, Tensor]:
    """The weights under the model's names, with prefixes removed."""
    if prefix:
        chosen = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
        if not chosen:
            names = ", ".join(printable(name) for name in [*weights][:6])
            raise CheckpointError(f"Nothing in {who} begins with {prefix!r}. It has: {names}, ...")
        weights = chosen
    best, fits = "", sum(name in first for name in weights)
    for length in (1, 2, 3):
        for parts in itertools.permutations(_PREFIXES, length):
            beginning = "".join(parts)
            count = sum(
                n.startswith(beginning) and n.removeprefix(beginning) in first for n in weights
            )
            if count > fits:
                best, fits = beginning, count
    inner = {name.replace("_orig_mod.", ""): t for name, t in weights.items()}
    if not best and sum(name in first for name in inner) > fits:
        _log.info("%s: _orig_mod. was taken out of the names.", who)
        return inner
    if best:
        _log.info("%s: the prefix %s was taken off the names.", who, best)
    return {n.removeprefix(best): t for n, t in weights.items()}


def _misfits(
    found: Mapping[str, Tensor],
    first: Mapping[str, str],
    needed: Iterable[str],
    there: Mapping[str, Tensor],
    cast: bool,
) -> list[tuple[str, str, str]]:
    """Rows of name, tensor in the file, and tensor in the state."""
    rows: list[tuple[str, str, str]] = []
    for name, tensor in found.items():
        if name not in first:
            rows.append((name, short(tensor), "-"))
            continue
        own = there[first[name]]
        fits = tensor.dtype == own.dtype or (cast and torch.can_cast(tensor.dtype, own.dtype))
        if tensor.shape != own.shape or not fits:
            rows.append((name, short(tensor), short(own)))
    covered = {first[name] for name in found if name in first}
    rows += [(name, "-", short(there[name])) for name in there if name in set(needed) - covered]
    return rows


def _refusal(who: str, wrong: list[tuple[str, str, str]]) -> str:
    both = [(file, state) for _, file, state in wrong if "-" not in (file, state)]
    hints = ["Load what fits with strict=False"]
    if both and all(_shape(file) == _shape(state) for file, state in both):
        hints.append(
            "convert other dtypes with cast=True, where no part is lost (complex to real, and "
            "fractions to integers, are not converted)"
        )
    if any(state == "-" for _, _, state in wrong):
        hints.append('take one part of the file with prefix="..."')
    return (
        f"The weights of {who} do not fit the model:\n"
        + table(("name", "file", "state"), [(printable(name), *rest) for name, *rest in wrong[:30]])
        + (f"\nand {len(wrong) - 30} more" if len(wrong) > 30 else "")
        + "\nThe usual cause is a model built with other settings, or whose names have a prefix. "
        + f"{'; '.join(hints)}."
    )


def _shape(text: str) -> str:
    return text.partition("[")[2]


def _untied(who: str, name: str, own: str) -> str:
    return (
        f"{who} has different values for {own!r} and {name!r}, which are one tensor in this model "
        "(tied). The usual cause is a model that was saved without tying them."
    )


def _put(like: State, loaded: Mapping[str, Tensor]) -> State:
    new = {**like.params, **like.buffers, **loaded}
    state = like.replace(
        params={name: new[name] for name in like.params},
        buffers={name: new[name] for name in like.buffers},
    )
    return refreshed(like, state, tree_paths({"slots": like.slots}))
