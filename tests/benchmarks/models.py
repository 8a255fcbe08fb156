"""Models that people bring: generative, physical, tabular, recurrent, attending, convolving."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .problems import PROBLEMS, Problem, classify, labelled, wide

DROPOUT = 0.1
BY_CHANCE = 0.2
"""How far losses may be apart where each contender draws random numbers of its own."""

NOT_IN_JAX: Mapping[str, str] = {
    "JAX": "nobody has written this model in JAX here",
    "JAX, 8 steps a call": "nobody has written this model in JAX here",
    "fnloop, compiled, donated, 8 steps a call": "it is measured beside JAX",
}


def vae() -> Problem:
    """A variational autoencoder, 784-400-20-400-784, 128 pictures of black and white."""

    def build() -> nn.Module:
        return nn.ModuleDict(
            {
                "encoder": nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40)),
                "decoder": nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784)),
            }
        )

    def loss(model: Any, x: Tensor) -> Tensor:
        mean, log_variance = model["encoder"](x).chunk(2, -1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        likelihood = F.binary_cross_entropy_with_logits(model["decoder"](z), x, reduction="none")
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return (likelihood.sum(-1) + divergence.sum(-1)).mean()

    g = torch.Generator().manual_seed(0)
    pictures = [torch.rand(128, 784, generator=g).round() for _ in range(32)]
    return Problem("vae", build, loss, pictures, rtol=BY_CHANCE, left_out=NOT_IN_JAX)


def pinn() -> Problem:
    """Burgers' equation, by a perceptron 2-50-50-50-1 at 256 points: second derivatives."""

    def build() -> nn.Module:
        sizes = [2, 50, 50, 50]
        hidden = [
            layer
            for inner, outer in itertools.pairwise(sizes)
            for layer in (nn.Linear(inner, outer), nn.Tanh())
        ]
        return nn.Sequential(*hidden, nn.Linear(50, 1))

    def loss(model: Any, points: Tensor) -> Tensor:
        if not points.requires_grad:
            points = points.clone().requires_grad_()
        u = model(points)
        (slope,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        over_x, over_t = slope[:, :1], slope[:, 1:]
        (curvature,) = torch.autograd.grad(over_x.sum(), points, create_graph=True)
        equation = over_t + u * over_x - 0.01 * curvature[:, :1]
        start = torch.cat([points[:, :1], torch.zeros_like(points[:, :1])], 1)
        beginning = model(start) + torch.sin(torch.pi * points[:, :1])
        return equation.square().mean() + beginning.square().mean()

    g = torch.Generator().manual_seed(0)
    points = [torch.rand(256, 2, generator=g) * 2 - 1 for _ in range(32)]
    return Problem(
        "pinn", build, loss, points, ready=lambda x: x.clone().requires_grad_(), left_out=NOT_IN_JAX
    )


def tabular() -> Problem:
    """Three layers with BatchNorm and dropout, 128 wide, on 256 rows of 32 numbers."""

    def build() -> nn.Module:
        hidden: list[nn.Module] = []
        for inner in (32, 128, 128):
            hidden += [nn.Linear(inner, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(DROPOUT)]
        return nn.Sequential(*hidden, nn.Linear(128, 2))

    return Problem(
        "tabular",
        build,
        classify,
        labelled(256, 32, classes=2),
        rtol=BY_CHANCE,
        left_out=NOT_IN_JAX,
    )


class Recurrent(nn.Module):
    """The class of a text, from the last output of a recurrent layer."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM], width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, width)
        self.layer = kind(width, width, batch_first=True)
        self.head = nn.Linear(width, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(ids))[0][:, -1])


def gru() -> Problem:
    """A GRU 64 wide on 32 texts of 32 tokens."""
    return Problem(
        "gru", lambda: Recurrent(nn.GRU, 64), classify, texts(32, 32), left_out=NOT_IN_JAX
    )


def lstm() -> Problem:
    """An LSTM 128 wide on 32 texts of 32 tokens."""
    return Problem(
        "lstm", lambda: Recurrent(nn.LSTM, 128), classify, texts(32, 32), left_out=NOT_IN_JAX
    )


class Encoder(nn.Module):
    """The class of a text, from the mean over a transformer's outputs."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, width)
        self.position = nn.Parameter(0.02 * torch.randn(32, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, DROPOUT, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(ids) + self.position).mean(1))


def encoder() -> Problem:
    """Two layers of `nn.TransformerEncoder`, 64 wide, with dropout, on 32 texts of 32 tokens."""
    return Problem("encoder", Encoder, classify, texts(32, 32), rtol=BY_CHANCE, left_out=NOT_IN_JAX)


class Block(nn.Module):
    """A layer of GPT-2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        p = DROPOUT if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
        x = x + self.dropout(self.mix(attended.transpose(1, 2).flatten(2)))
        up = F.gelu(self.up(self.norm2(x)), approximate="tanh")
        return x + self.dropout(self.down(up))


class GPT2(nn.Module):
    """GPT-2, smaller: dropout as in the original, and the head has the embedding's weights."""

    def __init__(self, width: int = 192, layers: int = 6, length: int = 64) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(2000, width), nn.Embedding(length, width)
        self.dropout = nn.Dropout(DROPOUT)
        self.layers = nn.Sequential(*(Block(width, 6) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for weight in (self.token.weight, self.position.weight):
            nn.init.normal_(weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.dropout(self.token(ids) + self.position(places))
        return F.linear(self.norm(self.layers(x)), self.token.weight)


def gpt2() -> Problem:
    """GPT-2 of 6 layers, 192 wide, 2,000 tokens, with dropout: 4 windows of 64 tokens."""

    def loss(model: Any, window: Tensor) -> Tensor:
        return F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())

    g = torch.Generator().manual_seed(0)
    windows = [torch.randint(2000, (4, 65), generator=g) for _ in range(32)]
    return Problem("gpt2", GPT2, loss, windows, rtol=BY_CHANCE, left_out=NOT_IN_JAX)


def normalized(inner: int, outer: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """A convolution without bias, and BatchNorm."""
    return [nn.Conv2d(inner, outer, size, stride, size // 2, bias=False), nn.BatchNorm2d(outer)]


def blocks() -> Problem:
    """Five blocks of convolution, BatchNorm and ReLU on 32 pictures of 32 x 32."""

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        widths = [3, 32, 32, 64, 64, 128]
        for i, (inner, outer) in enumerate(itertools.pairwise(widths)):
            layers += [*normalized(inner, outer, stride=1 + i % 2), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))

    return Problem(
        "blocks", build, classify, labelled(32, 3, 32, 32), pictures=True, left_out=NOT_IN_JAX
    )


class Residual(nn.Module):
    """A basic block of ResNet."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            *normalized(inner, outer, stride=stride), nn.ReLU(), *normalized(outer, outer)
        )
        same = inner == outer and stride == 1
        self.past = nn.Sequential(*([] if same else normalized(inner, outer, 1, stride)))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inside(x) + self.past(x))


def resnet18() -> Problem:
    """ResNet-18 on 8 pictures of 64 x 64."""

    def build() -> nn.Module:
        layers: list[nn.Module] = [*normalized(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        inner = 64
        for outer in (64, 128, 256, 512):
            layers += [Residual(inner, outer, 1 + (outer > 64)), Residual(outer, outer, 1)]
            inner = outer
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))

    # BatchNorm over few numbers: where sums have another order, losses drift apart.
    return Problem(
        "resnet18",
        build,
        classify,
        labelled(8, 3, 64, 64),
        pictures=True,
        rtol=0.05,
        left_out=NOT_IN_JAX,
    )


def texts(examples: int, length: int) -> list[tuple[Tensor, Tensor]]:
    """Texts of 1,000 words, each of one of four classes."""
    g = torch.Generator().manual_seed(0)
    return [
        (
            torch.randint(1000, (examples, length), generator=g),
            torch.randint(4, (examples,), generator=g),
        )
        for _ in range(32)
    ]


MODELS: Mapping[str, Callable[[], Problem]] = {
    make.__name__: make for make in (vae, pinn, tabular, gru, encoder, gpt2, lstm, blocks, resnet18)
}

CASES: Mapping[str, Callable[[], Problem]] = {**PROBLEMS, **MODELS}
"""All whose steps are timed, by name."""

MEASURED: Mapping[str, Callable[[], Problem]] = {**CASES, "wide": wide}
"""With the one that is there for memory."""
