"""A small GPT that learns to write, one character at a time.

Run it as it is, on the Python manual that comes with Python, or on a text of your own:

    python examples/char_gpt.py
    fnloop fit examples/char_gpt.py --text tinyshakespeare.txt --folder runs/shakespeare

The model is GPT-2's (Radford et al., 2019) without biases: 4 layers, 4 heads, 128 wide, 0.8 million
parameters. Data, schedule and optimizer are nanoGPT's setting for a laptop. On tinyshakespeare
2,000 steps take three minutes on two CPU cores, and the validation loss comes down to about 1.9.
"""

from __future__ import annotations

import functools
import math
import pydoc_data.topics
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fnloop as fl


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


def batches(text: str, block: int, batch_size: int, seed: int) -> fl.Data:
    """Windows of the text, the last tenth of it for validation.

    Every place where a window fits is an example. ``unfold`` makes that a view of the text, so it
    costs no memory; and which windows are in a batch follows from the cursor, so that a stopped run
    goes on exactly where it was.
    """
    index = {character: i for i, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([index[character] for character in text])
    train, rest = ids.split([int(0.9 * len(ids)), len(ids) - int(0.9 * len(ids))])
    windows, held_out = train.unfold(0, block + 1, 1), rest.unfold(0, block + 1, 1)
    places = torch.linspace(0, len(held_out) - 1, 100 * batch_size).long()  # 100 batches, evenly
    return fl.Data(
        train=fl.Batches(windows, batch_size, seed=seed),
        validate=fl.Batches(held_out[places], batch_size, shuffle=False),
    )


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
    seed: int = 0,
    folder: Path = Path("runs/char_gpt"),
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
        seed: Of the initial weights and the order of the windows.
        folder: For checkpoints and curves.
    """
    words = read(text)
    data = batches(words, block, batch_size, seed)
    rate = fl.cosine(lr, steps=steps, warmup=min(warmup, steps), end=lr / 10)
    adamw = functools.partial(fl.adamw, rate, b2=0.99)
    step = fl.pipe(
        loss,
        fl.grad,
        fl.update(
            fl.chain(
                fl.clip_by_norm(clip),
                fl.by_label(
                    {"matrix": adamw(weight_decay=weight_decay), "scale": adamw(weight_decay=0.0)},
                    decays,
                ),
            )
        ),
    )
    return fl.Recipe(
        step,
        model=functools.partial(GPT, len(set(words)), block, layers, heads, width),
        data=data,
        callbacks=[
            fl.every(max(1, steps // 8), fl.validate(loss, data.validate)),
            fl.checkpoint(folder, keep=1, monitor="val/loss"),
            fl.progress(names=["loss", "val/loss"]),
        ],
        metrics=loss,
        steps=steps,
        folder=folder,
        seed=seed,
    )


@torch.no_grad()
def write(model: GPT, text: str, prompt: str, length: int) -> str:
    """Let the model go on from `prompt`, drawing each character from what it predicts."""
    characters = sorted(set(text))
    ids = torch.tensor([[characters.index(character) for character in prompt]])
    block = model.position.num_embeddings
    for _ in range(length):
        probabilities = model(ids[:, -block:])[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probabilities, 1)], dim=1)
    return "".join(characters[i] for i in ids[0].tolist())


def main() -> None:
    r = recipe()
    state = r.step.init(r.model, seed=r.seed)
    state, history = fl.fit(
        r.step, state, r.data, steps=r.steps, callbacks=r.callbacks, resume=r.folder
    )
    print(history)
    print(write(fl.to_module(state), read(None), prompt="The ", length=500))


if __name__ == "__main__":
    main()
