"""What cannot be part of one graph, and what to write instead, by the error of recording it."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fnloop._torch import autograd
from fnloop._torch.draws import RandomnessError
from fnloop._torch.graph import DATA_DEPENDENT, DYNAMIC_SHAPE, NO_META, packet_name
from fnloop.transforms.cache_errors import cache_fault, remedy


class Advice(NamedTuple):
    """An error of recording in the user's terms.

    Attributes:
        what: What cannot be recorded.
        fix: What to do instead.
    """

    what: str
    fix: str


def is_of_a_layer(file: str) -> bool:
    """Whether a file is of PyTorch's layers, losses or distributions, which have settings."""
    path = Path(file).as_posix()
    return bool(re.search(r"/torch/(nn|distributions)/", path)) and not path.endswith(_CALLING)


_CALLING = ("nn/modules/module.py", "nn/modules/container.py")


def advice_for(error: Exception, code: str, layers: bool = False) -> Advice | None:
    """What to do about an error of recording; None if recording did not cause it.

    Args:
        error: With the traceback from the recording on.
        code: The innermost line outside of PyTorch and fnloop; empty in the backward pass.
        layers: Whether it is one of PyTorch's own layers or distributions after all.
    """
    text, frames = str(error), traceback.extract_tb(error.__traceback__)
    if isinstance(error, DATA_DEPENDENT) or "FakeTensor.__format__" in text:
        if _passes(frames, "nn/modules/rnn.py"):
            return _PACKED
        if layers:
            return Advice(_ASKS, "")
        return next((advice for words, advice in _ASKED.items() if re.search(words, code)), _VALUE)
    if isinstance(error, DYNAMIC_SHAPE):
        backward = not code and any(
            frame.name == "backward" and frame.filename == autograd.__file__ for frame in frames
        )
        return _SHAPES.get(packet_name(error), _SPARSE_GRADIENT if backward else _SHAPE)
    if isinstance(error, NO_META):
        return _without_shape(error)
    if isinstance(error, RandomnessError):
        return Advice(text, "")
    if "InvalidCxxCompiler" in repr(error):
        return _COMPILER
    if "numpy" in text and isinstance(error, (RuntimeError, TypeError)):
        return Advice(
            f"a tensor is taken out of PyTorch ({text.rstrip('.')})",
            "Compute it in PyTorch, or after the step, from its metrics.",
        )
    if re.search("BF16|Float16", text) and any("grouped_mm" in frame.name for frame in frames):
        return _GROUPED
    if fault := cache_fault(error):
        return Advice(f"its cache fails ({fault})", remedy())
    return next((advice for words, advice in _WORDS.items() if words in text), None)


def _passes(frames: Sequence[traceback.FrameSummary], file: str) -> bool:
    return any(Path(frame.filename).as_posix().endswith(f"torch/{file}") for frame in frames)


def _without_shape(error: Any) -> Advice:
    name = packet_name(error)
    if "nested" in name:
        return Advice(
            f"nested tensors are not recorded ({error})",
            "Pad the parts to one length, and leave the padding out by weights: "
            "fl.Mean((w * losses).sum(), w.sum()).",
        )
    return Advice(
        f"an operation does not say what shape its result has: {error}",
        "Give it a fake implementation, torch.library.register_fake; if it is PyTorch's own, "
        "replace it, or wrap it by torch.library.custom_op.",
    )


_ASKS = (
    "a value of a tensor is asked for (by item(), float(), a format, an if), and values are known "
    "only when the step runs"
)
_VALUE = Advice(
    _ASKS,
    "Choose with torch.where instead of an if; report numbers as metrics; use a tensor where a "
    "Python number is computed from one, and a mask, torch.arange(size) < n, where one says how "
    "many.",
)
_CLASSES = Advice(
    "a value of a tensor is asked for: one_hot looks for the largest class",
    "Say how many classes there are: F.one_hot(y, n).",
)
_ASKED = {
    r"one_hot\(": _CLASSES,
    "^(assert|raise)": Advice(
        _ASKS,
        "A condition that is a tensor, and that does nothing but raise, is recorded and looked at "
        "after the step: assert (x < n).all() in place of x.max().item() < n; (a | b).all() in "
        "place of a or b; without a try around it.",
    ),
    "^while": Advice(
        _ASKS,
        "Repeat as often as at most needed, and keep what is done: for _ in range(most): "
        "x = torch.where(x.norm() > 1, x / 2, x).",
    ),
    r"\b(allclose|equal)\(": Advice(
        _ASKS,
        "Compare as a tensor, (a == b).all() or ((a - b).abs() <= tolerance).all(), and choose "
        "with torch.where.",
    ),
    r"tolist\(": Advice(
        _ASKS,
        "Report the tensor itself as a metric. Lengths are masks, torch.arange(size) < n, or "
        "Python numbers in the batch: each combination of those takes a graph.",
    ),
    r"\bif\b": Advice(
        _ASKS,
        "Choose between the results with torch.where(condition, a, b). A part that may be empty "
        "has the weight zero: (w * losses).sum() / w.sum().clamp(min=1).",
    ),
    r"[\"']\s*:": Advice(_ASKS, "Report the tensor itself as a metric, without item() or float()."),
}
"""By what is written in the line, where the error says no more; the first that is found."""

_SHAPE = Advice(
    "the shape of a result depends on values (a mask as an index, nonzero, unique)",
    "Keep the shape. A mean over what a mask picks: fl.Mean((w * losses).sum(), w.sum()) with "
    "w = mask.float(), or (w * x).sum() / w.sum() for one term of a loss. A change of what it "
    "picks: torch.where(mask, changed, x). Groups that are picked one after the other: all at "
    "once, torch.zeros(n, d).index_add(0, group, x).",
)
_SPARSE_GRADIENT = Advice(
    "in the backward pass, the shape of a result depends on values",
    "The usual cause is nn.Embedding(sparse=True, padding_idx=...), which drops rows of its "
    "gradient: leave sparse=True out. A step makes gradients dense in any case.",
)
_PACKED = Advice(
    "the shape of a packed sequence depends on the lengths",
    "Run the recurrent layer on the padded batch, and leave the padding out by weights: "
    "fl.Mean((w * losses).sum(), w.sum()). With the padding at the end, the forward direction "
    "gives the same up to each length, and its last state is output[range(n), lengths - 1]; for a "
    "backward direction, reverse each sequence within its length before the layer.",
)
_UNIQUE = Advice(
    "the number of different values depends on the values",
    "Look for them before the step, where the batch is made; or count into a tensor of known "
    "length: torch.zeros(n).index_add(0, x, weights).",
)
_SHAPES = {
    "_pack_padded_sequence": _PACKED,
    "_ctc_loss": Advice(
        "the working memory of F.ctc_loss depends on the lengths of the targets",
        "Make it an operation whose results have known shapes, by torch.library.custom_op: the "
        "losses, one for each example, and their gradient, of the shape of the scores. It takes "
        '20 lines, which are in the documentation: "Compile a step", "CTC".',
    ),
    "repeat_interleave": Advice(
        "the length of what repeat_interleave returns depends on values",
        "Say how long it is: repeat_interleave(..., output_size=n).",
    ),
    "bincount": Advice(
        "the length of what bincount returns depends on values",
        "Count into a tensor of known length: torch.zeros(n).index_add(0, x, weights).",
    ),
    "_unique2": _UNIQUE,
    "unique_consecutive": _UNIQUE,
    "unique_dim": _UNIQUE,
    "linalg_lstsq": Advice(
        "the shapes of what linalg.lstsq returns depend on values (the rank)",
        "Use torch.linalg.pinv(a) @ b.",
    ),
}
"""By the name of the operation."""

_GROUPED = Advice(
    "PyTorch records its grouped matrix product (grouped_mm) for bfloat16, and not for this dtype",
    "Multiply by torch.bmm, with the weights of each row's group: torch.bmm(x[:, None], w[group]). "
    'For the experts of transformers that is a setting: experts_implementation="batched_mm".',
)
_COMPILER = Advice("there is no C++ compiler", "Install one (g++), or say where it is: CXX=...")
_FORWARD_MODE = Advice(
    "PyTorch does not record some forward-mode derivatives under vmap",
    "The usual cause is torch.func.hessian, which is jacfwd(jacrev(f)): "
    "torch.func.jacrev(torch.func.jacrev(f)) gives the same and is recorded. Another is "
    "fl.schemes.forward_gradient on slices of a batch, as fl.accumulate takes them, in a "
    'population: with mode="loop" it is recorded.',
)
_SPARSE_TENSOR = Advice(
    "PyTorch does not record this use of a sparse tensor",
    "Make the tensor dense; or write the product of a sparse matrix, given by its rows, columns "
    "and values, and x as torch.zeros(n, d).index_add(0, rows, values[:, None] * x[columns]).",
)
_QUANTIZED = Advice(
    "PyTorch does not record quantized tensors",
    "Give the model the numbers themselves: self.table = table.dequantize(), in __init__.",
)
_WORDS = {
    # The tangents that get lost are on the device "meta".
    "least two devices, meta": _FORWARD_MODE,
    "Sparse CSR tensors do not have strides": _SPARSE_TENSOR,
    "SparseCooTensor": _SPARSE_TENSOR,
    "SparseTensorImpl": _SPARSE_TENSOR,
    "QuantizedMeta": _QUANTIZED,
    "its data is not allocated yet": Advice(
        "the values of a tensor are read outside of PyTorch's operations",
        "Join tensors by torch.stack, not by torch.tensor([a, b]); wrap an extension by "
        "torch.library.custom_op.",
    ),
}
"""By words of the error, where its class says nothing."""
