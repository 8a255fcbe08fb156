"""Texts of many lengths, compiled: what padding to a few lengths costs, and saves.

    python -m tests.benchmarks.lengths
    python -m tests.benchmarks.lengths --examples 640 --epochs 3

A small transformer classifies texts of 20 to 100 tokens on one thread, by AdamW. Each way of making
batches is measured in a process of its own, with empty caches:

- by hand, each batch padded to its longest text: eager, or loss and model in
  ``torch.compile(dynamic=True)``, which compiles for all lengths at once;
- fnloop's compiled step (``fl.fit``), each batch padded to its longest text: from the second length
  on it has one graph for all;
- the same without ``dynamic=True``, texts padded to 1, 2 or 4 lengths, with buckets.

All times are the processor's, which hardly notice what else the machine does. ``compiling`` is the
first epoch less a later one, the C++ compiler included; ``us/text`` is the time for a text in the
best of the later epochs, with padding, optimizer and loop. By hand, the graphs of the forward and
of the backward pass count as two.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl

from . import machine
from .by_hand import inductor_graphs
from .compare_checkouts import markdown
from .compiling import empty_caches

BATCH, WORDS, WIDTH, CLASSES = 32, 1000, 64, 4
SIZES = {"1 length": (100,), "2 lengths": (60, 100), "4 lengths": (40, 60, 80, 100)}
EAGER, DYNAMIC = "by hand, eager", "by hand, dynamic=True"
ANY = "the longest"
CONTENDERS = (EAGER, DYNAMIC, ANY, *SIZES)
LONGEST = tuple(range(20, 101))  # pads to the longest text of the batch

Epoch = Callable[[], float]
"""Trains an epoch, and returns its mean loss."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table in Markdown; 1 where something failed."""
    options = _parser().parse_args(arguments)
    machine.limit(1)
    if options.only:
        print(json.dumps(measured(options.only, options.examples, options.epochs)))
        return 0
    lines, failed = [], 0
    for name in CONTENDERS:
        found = _in_a_process(name, options)
        if isinstance(found, str):
            print(f"FAILED {name}: {found}", file=sys.stderr, flush=True)
            failed = 1
        else:
            lines.append([name, *line(found)])
    head = ["texts padded to", "graphs", "compiling, s", "padding", "us/text", "loss"]
    print("\n".join(markdown(head, lines)))
    return failed


def line(found: dict[str, Any]) -> list[str]:
    """A line of the table."""
    return [
        str(found["graphs"]),
        f"{found['compiling']:.1f}",
        f"{found['padding']:.0%}",
        f"{found['us']:.0f}",
        f"{found['loss']:.3f}",
    ]


def measured(name: str, examples: int, epochs: int) -> dict[str, Any]:
    """Train some epochs, the first of which compiles."""
    data, graphs = batches(name, texts(examples)), inductor_graphs()
    if name in (EAGER, DYNAMIC):
        epoch = by_hand(data, name == DYNAMIC)
    else:
        epoch = with_fnloop(data, True, dynamic=name == ANY)
    seconds, loss = list[float](), 0.0
    for _ in range(epochs):
        before = _processor()
        loss = epoch()
        seconds.append(_processor() - before)
    masks = [mask["tokens"] for _, mask, _ in data]
    return {
        "graphs": inductor_graphs() - graphs,
        "compiling": seconds[0] - min(seconds[1:]),
        "padding": 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks),
        "us": min(seconds[1:]) / examples * 1e6,
        "loss": loss,
    }


def texts(count: int) -> list[dict[str, Any]]:
    """Texts whose class is that of their most frequent kind of word."""
    generator = torch.Generator().manual_seed(0)
    found: list[dict[str, Any]] = []
    for _ in range(count):
        length = int(torch.randint(20, 101, (), generator=generator))
        label = int(torch.randint(CLASSES, (), generator=generator))
        words = torch.randint(WORDS, (length,), generator=generator)
        telling = torch.rand(length, generator=generator) < 0.3
        words = torch.where(telling, words - words % CLASSES + label, words)
        found.append({"tokens": words, "label": label})
    return found


def batches(name: str, data: list[dict[str, Any]]) -> fl.Batches:
    """Padded batches; by hand, texts of similar lengths meet as with four lengths."""
    lengths = [len(text["tokens"]) for text in data]
    pad = fl.data.pad(SIZES.get(name, LONGEST), {"tokens": 0}, batch_size=BATCH)
    groups = fl.data.pad(SIZES.get(name, SIZES["4 lengths"]), 0)
    return fl.Batches(data, BATCH, collate=pad, buckets=groups.buckets(lengths))


class Block(nn.Module):
    """Attention to all words of a text, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(self.norms[0](x)).unflatten(-1, (3, 4, WIDTH // 4)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(*parts, attn_mask=mask[:, None, None])
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.norms[1](x))))


class Classifier(nn.Module):
    """Two blocks, and the mean over the words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, mask)
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(mean)


def weighted_loss(model: Any, padded: Any) -> fl.Mean:
    """The mean over the texts that were not added."""
    batch, mask, weight = padded
    scores = model(batch["tokens"], mask["tokens"])
    losses = F.cross_entropy(scores, batch["label"], reduction="none")
    return fl.Mean((weight * losses).sum(), weight.sum())


def with_fnloop(data: fl.Batches, compiled: bool, dynamic: bool = False) -> Epoch:
    """``fl.fit``."""
    step = fl.pipe(weighted_loss, fl.grad, fl.update(fl.optim.adamw(1e-3)))
    step = fl.compile(step, dynamic=dynamic) if compiled else step
    state = step.init(Classifier, seed=0)

    def epoch() -> float:
        nonlocal state
        state, history = fl.fit(step, state, data, epochs=1, progress=False)
        return float(history["loss"][-1])

    return epoch


def by_hand(data: fl.Batches, compiled: bool) -> Epoch:
    """A loop with ``loss.backward()`` and AdamW, which is fused; the same mathematics."""
    model = fl.to_module(fl.pipe(weighted_loss, fl.grad).init(Classifier, seed=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def mean(tokens: Any, label: Any, mask: Any, weight: Any) -> torch.Tensor:
        losses = F.cross_entropy(model(tokens, mask), label, reduction="none")
        return (weight * losses).sum() / weight.sum()

    loss_of: Any = torch.compile(mean, dynamic=True, fullgraph=True) if compiled else mean
    pairs = data.iterate()

    def epoch() -> float:
        losses = []
        for _ in range(len(data)):
            _, (batch, mask, weight) = next(pairs)
            optimizer.zero_grad()
            loss = loss_of(batch["tokens"], batch["label"], mask["tokens"], weight)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    return epoch


def _processor() -> float:
    """The processor's seconds so far, those of processes that have ended included."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _in_a_process(name: str, options: argparse.Namespace) -> dict[str, Any] | str:
    """What was measured, or the last line of the error."""
    command = [sys.executable, "-m", "tests.benchmarks.lengths", "--only", name]
    command += ["--examples", str(options.examples), "--epochs", str(options.epochs)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **empty_caches(Path(folder))}
        environment |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2]
        )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.lengths",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--examples", type=int, default=2000, help="texts (default 2000)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs, 2 at least (default 5)")
    parser.add_argument("--only", choices=CONTENDERS, help="measure one, in this process, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
