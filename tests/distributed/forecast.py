"""What plans would take from 8 to 10,000 GPUs: ``python -m tests.distributed.forecast``.

It prints the tables of docs/how-to/scale.md, and draws docs/images/scale.png. No GPU is used, and
none was: bytes are those of `fl.summary`, operations are counted on tensors without values, and
times follow from the formulas of `fnloop.distributed.cost`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fnloop as fl
from fnloop.distributed.cost import Link, Machine
from fnloop.distributed.mesh import Mesh
from fnloop.transforms.sharded import Exchange

H100 = Machine(
    peak=989e12,  # bf16 without sparsity, by NVIDIA's data sheet, as are memory and bandwidth
    utilization=0.4,  # a guess
    memory=80e9,
    bandwidth=3.35e12,
    ranks=8,
    inside=Link(0.8 * 450e9, 3.4e-6),  # 0.8 is a guess; latencies are those of NCCL's own model,
    between=Link(0.8 * 50e9, 14e-6),  # src/graph/tuning.cc
)
RANKS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 10_000)
IMAGE = Path(__file__).parents[2] / "docs" / "images" / "scale.png"


class Size(NamedTuple):
    """A decoder, and what a rank (or those that share a model) is given: sequences of tokens."""

    layers: int
    width: int
    inner: int
    heads: int
    groups: int
    vocabulary: int
    length: int
    sequences: int


MODELS = {
    "GPT-2 small": Size(12, 768, 3072, 12, 12, 50257, 1024, 16),
    "7B": Size(32, 4096, 11008, 32, 32, 32000, 4096, 2),
    "70B": Size(80, 8192, 28672, 64, 8, 32000, 4096, 2),
}
PLANS = ("replicate", "zero2", "zero3")
SHARED = ("zero2", "tensor")
COLOURS = ("#b9bec9", "#d9822b", "#4051b5", "#3a9d6b")


class Block(nn.Module):
    """A block of a decoder; if its feed-forward layer is no more than 4 times as wide: gated."""

    def __init__(self, size):
        super().__init__()
        width, head = size.width, size.width // size.heads
        self.heads, self.groups, self.gated = size.heads, size.groups, size.inner != 4 * width
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, size.groups * head, bias=False)
        self.v_proj = nn.Linear(width, size.groups * head, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.up_proj = nn.Linear(width, size.inner, bias=False)
        self.down_proj = nn.Linear(size.inner, width, bias=False)
        if self.gated:
            self.gate_proj = nn.Linear(width, size.inner, bias=False)

    def forward(self, x):
        b, t, d = x.shape
        y = self.n1(x)
        q, k, v = (f(y).view(b, t, -1, d // self.heads) for f in self.projections)
        k, v = (z.repeat_interleave(self.heads // self.groups, 2) for z in (k, v))
        q, k, v = (z.transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(y.transpose(1, 2).reshape(b, t, d))
        y = self.n2(x)
        z = self.up_proj(y)
        z = F.silu(self.gate_proj(y)) * z if self.gated else F.gelu(z)
        return x + self.down_proj(z)

    @property
    def projections(self):
        return self.q_proj, self.k_proj, self.v_proj


class Decoder(nn.Module):
    """Like GPT-2, or like Llama; the head is not the embedding."""

    def __init__(self, size):
        super().__init__()
        self.embed = nn.Embedding(size.vocabulary, size.width)
        self.blocks = nn.ModuleList([Block(size) for _ in range(size.layers)])
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def loss(model, batch):
    """Cross-entropy of the next token."""
    x, y = batch
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def operations(size):
    """Of forward and backward pass for what one rank is given.

    A fourth of it again is for blocks that are computed a second time in the backward pass.
    """
    with torch.device("meta"):
        model = Decoder(size)
        x = torch.zeros(1, size.length, dtype=torch.long)
    with FlopCounterMode(display=False) as counted:
        loss(model, (x, x)).backward()
    return 4 / 3 * size.sequences * counted.get_total_flops()


def activations(size):
    """Bytes, in bf16, if each block keeps its input only: Korthikanti et al., 2022, section 5.

    One block at a time has 34 bytes for each number of its input (attention keeps no scores), and
    the head its scores, as they are and in float32 with their gradient.
    """
    tokens = size.sequences * size.length
    kept = (2 * size.layers + 34) * tokens * size.width
    return kept + 10 * tokens * size.vocabulary


def exchanged(size, ranks):
    """What ranks that share a model send: 6 sums of activations for each block and sequence.

    They are counted in tests/distributed/test_fake_ranks.py. bf16.
    """
    times = 6 * size.layers
    each = 2 * (ranks - 1) / ranks * size.sequences * size.length * size.width * 2
    return Exchange("activations", times, round(times * each), 2 * times)


def described(size, plan):
    """The step, and a state without values."""
    with torch.device("meta"):
        model = Decoder(size)
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(3e-4)))
    step = fl.shard(step, fl.mesh(), plan)
    return step, step.init(model)


def explained():
    """For each model and plan: what `fl.summary` tells, and what `Sharded.on` must know."""
    for model, size in MODELS.items():
        flops, kept = operations(size), activations(size)
        for plan in PLANS:
            step, state = described(size, plan)
            told = {k: fl.summary(step, state, mesh=k).sharded for k in RANKS}
            yield (model, plan), told, (flops, kept)
        if size.heads % 8 == 0:  # eight ranks share a model, and the sequences of eight
            step, state = described(size, SHARED)
            many = size._replace(sequences=8 * size.sequences)
            told = {k: fl.summary(step, state, mesh=Mesh(k // 8, 8)).sharded for k in RANKS}
            yield (model, "zero2, tensor of 8"), told, (flops, kept, exchanged(many, 8))


def forecasts():
    """The costs by model and plan, and by the number of ranks: in one ring, and by doubling."""
    found = ({}, {})
    for key, told, needed in explained():
        for doubling, own in enumerate(found):
            own[key] = {k: t.on(H100, *needed, doubling=bool(doubling)) for k, t in told.items()}
    return found


def largest(ranks_to_cost):
    """From how many ranks on it fits, in words."""
    fits = [k for k, cost in ranks_to_cost.items() if cost.fits]
    return f"{min(fits):,}" if fits else "never"


def tables(ring, doubled, shown=(64, 512, 4096, 10_000)):
    """Markdown: memory and where it fits; and the share of the time in which a rank computes."""
    numbers = " / ".join(f"{k:,}" for k in shown)
    yield f"| model | plan | fits 80 GB from | GB at {numbers} |"
    yield "| --- | --- | --- | --- |"
    for (model, plan), row in ring.items():
        sizes = " / ".join(f"{row[k].memory / 1e9:.1f}" for k in shown)
        yield f"| {model} | {plan} | {largest(row)} | {sizes} |"
    yield ""
    yield f"| model | plan | one ring, {numbers} | doubling | overlapped |"
    yield "| --- | --- | --- | --- | --- |"
    for (model, plan), row in ring.items():
        other = doubled[model, plan]
        if largest(row) == "never":
            continue
        shares = [
            " / ".join(f"{share:.2f}" for share in shares)
            for shares in (
                [row[k].efficiency for k in shown],
                [other[k].efficiency for k in shown],
                [other[k].compute / other[k].overlapped for k in shown],
            )
        ]
        yield f"| {model} | {plan} | {' | '.join(shares)} |"


def draw(ring, doubled, file):
    """Write the picture: memory above, and the share of time in which a rank computes below."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["font.family"] = "DejaVu Sans"
    ink = "#30343c"
    colours = dict(zip([*PLANS, "zero2, tensor of 8"], COLOURS, strict=True))
    whole = Figure(figsize=(8, 5.2), dpi=200, layout="constrained")
    axes = whole.subplots(2, 3, sharex=True, sharey="row")
    for column, model in enumerate(MODELS):
        above, below = axes[0][column], axes[1][column]
        above.set_title(model, fontsize=9, color=ink)
        above.axhline(H100.memory / 1e9, color=ink, linewidth=0.7, linestyle=(0, (3, 2)))
        for (own, plan), row in ring.items():
            if own != model:
                continue
            other, line = doubled[own, plan], {"color": colours[plan], "linewidth": 1.3}
            above.plot(RANKS, [c.memory / 1e9 for c in row.values()], label=plan, **line)
            for found, style in ((row, "-"), (other, (0, (2, 1.5)))):
                kept = [c.efficiency if c.fits else float("nan") for c in found.values()]
                below.plot(RANKS, kept, linestyle=style, **line)
        above.set_yscale("log")
        below.set_ylim(0, 1)
        below.set_xscale("log")
        below.set_xlabel("GPUs", fontsize=8, color=ink)
        for ax in (above, below):
            ax.tick_params(labelsize=7, labelcolor=ink, length=2)
            ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("GB at the peak (dashed: 80)", fontsize=8, color=ink)
    axes[1][0].set_ylabel("share of time computing,\nwhere it fits", fontsize=8, color=ink)
    handles, labels = axes[0][1].get_legend_handles_labels()
    whole.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    whole.suptitle(
        "Forecast, not measured: a step on each GPU of a cluster; below, nothing overlapped, "
        "messages in one ring (solid) or by doubling (dashed)",
        fontsize=8,
        color=ink,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    whole.savefig(file)


def main():
    """Print the tables, and draw the picture; to another file, if one is named."""
    ring, doubled = forecasts()
    print("\n".join(tables(ring, doubled)))
    draw(ring, doubled, Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGE)


if __name__ == "__main__":
    main()
