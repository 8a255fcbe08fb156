"""Along which dimension each parameter is cut among the ranks that share a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import nn

from fnloop.optim.patterns import check_patterns, matches
from fnloop.values.state import State

Placements: TypeAlias = Mapping[str, int | None]
"""Patterns of names of parameters, each with the dimension along which they are cut, or None."""

_OUT = (
    "q k v q_proj k_proj v_proj query key value qkv qkv_proj query_key_value c_attn up_proj "
    "gate_proj fc1 c_fc lin1 linear1 w1 w3 wi wi_0 wi_1 dense_h_to_4h"
)
OUT = frozenset(_OUT.split())
"""Names of layers whose outputs are divided: each rank computes some features, or some heads."""

_IN = "o o_proj out_proj c_proj down_proj fc2 lin2 linear2 w2 wo dense_4h_to_h out_lin"
IN = frozenset(_IN.split())
"""Names of layers whose inputs are divided: the ranks' results are summed."""


def dims_of(state: State, placements: Placements | None, ranks: int) -> dict[str, int | None]:
    """For each parameter the dimension along which it is cut, by patterns or by known names.

    Raises:
        ValueError: A pattern fits no parameter; a size does not divide evenly; or nothing is cut.
    """
    if placements is None:
        found = _ready(state, ranks)
    else:
        check_patterns("fl.shard", placements, state.params)
        found = {
            name: next((dim for p, dim in placements.items() if matches(name, p)), None)
            for name in state.params
        }
        _check(found, state, ranks)
    if all([dim is None for dim in found.values()]):
        raise ValueError(
            "The plan cuts no parameter: the model has no layers of the names that it knows "
            f"({', '.join(sorted(OUT)[:6])}, ...). Write which are cut, by patterns of their "
            'names: fl.shard(step, mesh, {"*.up.*": 0, "*.down.weight": 1}).'
        )
    return found


def _ready(state: State, ranks: int) -> dict[str, int | None]:
    """By the names of the modules that transformers usually have."""
    found: dict[str, int | None] = dict.fromkeys(state.params)
    module = getattr(state.skeleton, "module", None)
    layers = module.named_modules() if isinstance(module, nn.Module) else ()
    for path, layer in layers:
        last = path.rpartition(".")[2]
        rows = 1 if type(layer).__name__ == "Conv1D" else 0  # of transformers, transposed
        weight, bias = f"{path}.weight", f"{path}.bias"
        if weight not in found or state.params[weight].ndim != 2:
            continue
        dim = rows if last in OUT else 1 - rows if last in IN else None
        if dim is not None and state.params[weight].shape[dim] % ranks == 0:
            found[weight] = dim
            if last in OUT and bias in found:
                found[bias] = 0
    return found


def _check(found: Mapping[str, int | None], state: State, ranks: int) -> None:
    for name, dim in found.items():
        shape: Any = state.params[name].shape
        if dim is None:
            continue
        if not -len(shape) <= dim < len(shape):
            raise ValueError(
                f"The plan cuts {name} along dimension {dim}, and it has the shape {list(shape)}."
            )
        if shape[dim] % ranks:
            raise ValueError(
                f"The plan cuts {name} of shape {list(shape)} along dimension {dim} among {ranks} "
                "ranks, which do not divide its size. Place it whole: None in place of "
                f"{dim}; or take another number of ranks, fl.mesh(tensor=...)."
            )
