"""A small GPT that learns to write, one character at a time.

Train it on the Python manual, which comes with Python, or on a text of your own, and see in
``samples.txt`` how its writing gets better::

    fnloop fit examples/char_gpt.py
    fnloop fit examples/char_gpt.py --text tinyshakespeare.txt --folder runs/shakespeare
    torchrun --nproc-per-node 2 examples/char_gpt.py --plan zero2     # two processes, one model

The model is GPT-2's (Radford et al., 2019) without biases: 4 layers, 4 heads, 128 wide, 0.8 million
parameters. Data, schedule and optimizer are nanoGPT's setting for a laptop. On tinyshakespeare
2,000 steps take some three minutes on two CPU cores, and the validation loss falls to about 1.9.
"""

from __future__ import annotations

import functools
import math
import pydoc_data.topics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fnloop as fl
from fnloop.cli.app import main


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # (batch, time, width) -> three of (batch, head, time, width of a head)
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(attended.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Characters (int64[batch, time]) in, logits of each next character out."""

    def __init__(self, characters: int, block: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(characters, width)
        self.position = nn.Embedding(block, width)
        self.layers = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, p in self.named_parameters():
            if p.ndim >= 2:  # what is added to the residual stream begins smaller, by depth
                residual = name.endswith(("mix.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        place = torch.arange(ids.shape[1], device=ids.device)
        x = self.layers(self.token(ids) + self.position(place))
        return F.linear(self.norm(x), self.token.weight)  # the output shares the input's embedding


def loss(model: GPT, window: Tensor) -> Tensor:
    """Each character of a window is predicted from those before it."""
    logits = model(window[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())


def read(path: Path | None) -> str:
    """The text at `path`, or the Python manual."""
    return "".join(pydoc_data.topics.topics.values()) if path is None else path.read_text("utf-8")


def windows(ids: Tensor, block: int, batch_size: int, seed: int) -> fl.Data:
    """Windows of a text, the last tenth of it for validation.

    Every place where a window fits is an example. ``unfold`` makes that a view of the text, so it
    costs no memory; and which windows are in a batch follows from the cursor, so that a stopped run
    goes on exactly where it was.
    """
    cut = int(0.9 * len(ids))
    train, held_out = (part.unfold(0, block + 1, 1) for part in (ids[:cut], ids[cut:]))
    places = torch.linspace(0, len(held_out) - 1, 100 * batch_size).long()  # 100 batches, evenly
    return fl.Data(
        train=fl.Batches(train, batch_size, seed=seed),
        validate=fl.Batches(held_out[places], batch_size, shuffle=False),
    )


def samples(characters: list[str], file: Path) -> fl.base.Effect:
    """An effect that lets the model write a little, and keeps what it wrote.

    It draws from a generator of its own: an effect must not disturb the training. All ranks call
    it, as each may have a part of the parameters; the first one writes.
    """

    @torch.no_grad()
    def write(state: fl.State, metrics: Mapping[str, Any]) -> None:
        state = fl.gather(state)
        if fl.mesh().rank:
            return
        model = fl.to_module(state).eval()
        block, generator = model.position.num_embeddings, torch.Generator().manual_seed(0)
        ids = torch.zeros(1, 1, dtype=torch.int64)  # the first character: mostly the line break
        for _ in range(300):
            chances = model(ids[:, -block:])[0, -1].softmax(0)
            ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)[None]], 1)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            text = "".join(characters[i] for i in ids[0].tolist())
            out.write(f"--- step {int(state.step)}\n{text}\n")

    return fl.effect(write, ranks="all")


def decays(name: str, p: Tensor) -> str:
    """Weight decay is for matrices: not for the scales of the norms."""
    return "matrix" if p.ndim >= 2 else "scale"


def recipe(
    text: Path | None = None,
    steps: int = 2000,
    lr: float = 1e-3,
    warmup: int = 100,
    weight_decay: float = 0.1,
    clip: float = 1.0,
    batch_size: int = 12,
    block: int = 64,
    layers: int = 4,
    heads: int = 4,
    width: int = 128,
    plan: Literal["replicate", "zero2", "zero3"] = "replicate",
    folder: Path = Path("runs/char_gpt"),
    seed: int = 0,
) -> fl.Recipe:
    """Train a character GPT.

    Args:
        text: A text file; default the Python manual, which differs between versions of Python.
        steps: Training steps.
        lr: Peak learning rate; it falls to a tenth of this.
        warmup: Steps until the peak.
        weight_decay: Of the matrices.
        clip: Largest norm of the gradient.
        batch_size: Windows in a batch.
        block: Characters that the model sees at once.
        layers: Transformer blocks.
        heads: Attention heads in each.
        width: Of the residual stream; a multiple of `heads`.
        plan: How the processes that train together share the state; of one it has all.
        seed: Of the initial weights and the order of the windows.
        folder: Of the run: checkpoints, samples, curves.
    """
    words = read(text)
    characters = sorted(set(words))
    index = {character: i for i, character in enumerate(characters)}
    data = windows(torch.tensor([index[c] for c in words]), block, batch_size, seed)
    now_and_then = max(1, steps // 8)
    rate = fl.schedules.cosine(lr, steps=steps, warmup=min(warmup, steps), end=lr / 10)
    adamw = functools.partial(fl.optim.adamw, rate, b2=0.99)
    step = fl.pipe(
        loss,
        fl.grad,
        fl.update(
            fl.optim.chain(
                fl.optim.clip_by_norm(clip),
                fl.optim.by_label(
                    {"matrix": adamw(weight_decay=weight_decay), "scale": adamw(weight_decay=0.0)},
                    decays,
                ),
            )
        ),
    )
    return fl.Recipe(
        fl.shard(step, fl.mesh(), plan),
        model=functools.partial(GPT, len(characters), block, layers, heads, width),
        data=data,
        callbacks=[
            fl.every(now_and_then, fl.validate(loss, data.validate)),
            fl.every(now_and_then, samples(characters, folder / "samples.txt")),
            fl.checkpoint(folder, keep=1, monitor="val/loss"),
            fl.progress(names=["loss", "val/loss"]),
            fl.History(every=max(1, steps // 200)),
        ],
        metrics=loss,
        steps=steps,
        folder=folder,
        seed=seed,
    )


if __name__ == "__main__":
    sys.exit(main(["fit", __file__, *sys.argv[1:]]))
