"""What to do about errors of torch that a batch causes: its dtypes, shapes and devices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fnloop.trees.paths import tree_items
from fnloop.values.state import State


def remedy(error: BaseException, state: State, batch: Any) -> str:
    """What the usual cause is, and what helps; empty if nothing is known about this error.

    >>> import fnloop as fl
    >>> step = fl.pipe(lambda model, batch: model(batch).mean(), fl.grad)
    >>> state = step.init(torch.nn.Linear(2, 1))
    >>> error = RuntimeError("mat1 and mat2 must have the same dtype, but got Double and Float")
    >>> print(remedy(error, state, torch.ones(3, 2, dtype=torch.float64)))
    the batch is float64, and the parameters are float32. NumPy makes float64 by default: ...
    """
    text = str(error)
    found = list(tree_items(batch))
    known = next((says for pattern, says in _KNOWN if re.search(pattern, text)), "")
    if known:
        return known
    facts = (explain(text, state, found) for explain in (_no_grad, _arrays, _devices, _dtypes))
    return next(filter(None, facts), "")


_KNOWN = (
    (
        "does not have a deterministic implementation",
        "fl.deterministic(warn=True) warns of such operations, and runs them all the same.",
    ),
    (
        "argument #1 'indices'",
        "An embedding takes whole numbers, the numbers of tokens: x.long().",
    ),
    (
        "Expected more than 1 value per channel when training",
        "A batch of one example has no variance, which BatchNorm divides by. The usual cause is "
        "the last batch of an epoch: fl.Batches(..., drop_last=True), or drop_last=True of the "
        "DataLoader, leaves it out; another batch size avoids it. fl.accumulate(k) also makes "
        "parts of one example, if a batch has k or fewer.",
    ),
    (
        r"expected target dtype to be Long|expected scalar type (Long|Byte)|nll_loss.* not "
        r"implemented for '(Int|Float)'",
        "Class numbers are int64: convert them once, where the data is made (y.long()). For "
        "targets that are probabilities, their shape is that of the scores.",
    ),
    (
        "multi-target not supported|0D or 1D target tensor expected",
        "Class numbers have the shape [N], without a last dimension of 1: y.squeeze(1).",
    ),
    (
        r"Target -?\d+ is out of bounds|index out of range|t >= 0 && t < n_classes",
        "Class numbers (and numbers of tokens) go from 0 to n - 1: the model has fewer outputs (or "
        "its embedding fewer rows) than that, or the numbers begin at 1, or -1 stands for missing "
        "ones (ignore_index=-1).",
    ),
    (
        "can't be cast to the desired output type Long|Found dtype Long but expected Float|result "
        "type Float can't be cast",
        "Targets of this loss are floats: y.float(). With class numbers, use cross_entropy.",
    ),
    (
        r"Target size .* must be the same as input size|Using a target size",
        "Scores of shape [N, 1] and targets of shape [N] do not fit: model(x).squeeze(1), or "
        "y.unsqueeze(1).",
    ),
    (
        "shapes cannot be multiplied",
        "The model's first layer expects another last dimension than the batch has; images are "
        "flattened with x.flatten(1).",
    ),
    (
        "non-iterable Micro|'Micro' object|not Micro",
        "The batch is an fl.data.Micro, whose parts fl.accumulate gives to the loss one by one: "
        "fl.pipe(loss, fl.grad, fl.accumulate(k), fl.update(optimizer)). To evaluate, give the "
        "data itself, without fl.data.group.",
    ),
    (
        "must be Tensor, not (list|tuple|dict)|'(list|tuple|dict)' object (has no attribute|is not "
        "callable)",
        "The loss gives the model a part of the batch that is no tensor: unpack it first (x, y = "
        "batch). A list of micro-batches is given as fl.data.Micro((b1, b2, ...)).",
    ),
)


def _no_grad(text: str, state: State, leaves: list[tuple[str, Any]]) -> str:
    if torch.is_grad_enabled() or "does not require grad" not in text:
        return ""
    return (
        "Evaluation runs without gradients, and this asks for some (torch.autograd.grad, "
        "backward), as a gradient penalty does. Put what needs them into the block "
        "'with torch.enable_grad():', inside of the loss. There the batch may require gradients; "
        "the parameters do not. Derivatives by torch.func need no such block."
    )


def _arrays(text: str, state: State, leaves: list[tuple[str, Any]]) -> str:
    arrays = [path for path, leaf in leaves if isinstance(leaf, np.ndarray)]
    if not arrays or not ("numpy" in text or "ndarray" in text):
        return ""
    return (
        f"{_place(arrays[0])} is a NumPy array, and models take tensors. fl.Batches(arrays, "
        "batch_size) makes tensors of arrays; or convert it: torch.from_numpy(x)."
    )


def _devices(text: str, state: State, leaves: list[tuple[str, Any]]) -> str:
    if "device" not in text:
        return ""
    home = state.step.device
    for path, leaf in _tensors(leaves):
        if leaf.device.type != home.type:
            return (
                f"{_place(path)} is on {leaf.device}, and the parameters are on {home}. Bring the "
                f'batches there, fl.data.prefetch(data, device="{home}"), or the state to the '
                f'data, state.to("{leaf.device}").'
            )
    return ""


def _dtypes(text: str, state: State, leaves: list[tuple[str, Any]]) -> str:
    own = next((p.dtype for p in state.params.peek() if p.is_floating_point()), None)
    if own is None or "arget" in text or not _MIXED.search(text):
        return ""
    for path, leaf in _tensors(leaves):
        spoken = _SPOKEN.get(leaf.dtype)
        if spoken is None or leaf.dtype == own or not re.search(spoken, text, re.IGNORECASE):
            continue
        if leaf.dtype == torch.float64:
            return (
                f"{_place(path)} is float64, and the parameters are {_name(own)}. NumPy makes "
                "float64 by default: convert once, where the data is made (x.float(), "
                'array.astype("float32")), or make the model float64 (model.double()).'
            )
        if leaf.is_floating_point():
            return (
                f"{_place(path)} is {_name(leaf.dtype)}, and the parameters are {_name(own)}: "
                f"convert one to the other (x.to(torch.{_name(own)})); fl.amp computes in half "
                "precision with float32 parameters."
                + (_STORED.format(name=_STORES[own]) if own in _STORES else "")
            )
        if leaf.dtype == torch.uint8:
            return (
                f"{_place(path)} is uint8, as images often are: make floats of it in the loss, "
                "x.float() / 255."
            )
        return f"{_place(path)} is {_name(leaf.dtype)}; a layer takes floats: x.float()."
    return ""


_STORES = {torch.bfloat16: "bf16-true", torch.float16: "fp16-true", torch.float64: "fp64"}
_STORED = (
    ' A step with fl.amp("{name}") converts its batches, and fl.amp("{name}")(loss) those of '
    "fl.evaluate, fl.validate and fl.predict."
)
_MIXED = re.compile("same dtype|scalar type|Input type|should be the same")
_SPOKEN = {
    torch.float64: "double|float64",
    torch.float32: "float",
    torch.float16: "half|float16",
    torch.bfloat16: "bfloat16",
    torch.uint8: r"byte|unsigned char|uint8",
    torch.int8: r"\bchar\b|int8",
    torch.int16: "short|int16",
    torch.int32: r"\bint\b|int32",
    torch.int64: "long|int64",
    torch.bool: "bool",
}
"""How torch's messages call the dtypes."""


def _tensors(leaves: list[tuple[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    return ((path, leaf) for path, leaf in leaves if isinstance(leaf, Tensor))


def _place(path: str) -> str:
    return f"batch/{path}" if path else "the batch"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
