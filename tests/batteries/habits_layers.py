"""Layers, and operations in them: recurrent, normalized, sparse, complex, random."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, rnn
from torch.utils.checkpoint import checkpoint

import fnloop as fl

from .habit import habits

LAYERS, habit = habits()


class Round(torch.autograd.Function):
    """Rounds, and passes the gradient through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, change: Tensor) -> Tensor:
        return change


class Exponential(torch.autograd.Function):
    """Keeps its result for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        result = x.exp()
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, change: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        return change * result


@habit()
def rounding_straight_through(model: Any, batch: Any) -> Tensor:
    return Round.apply(4 * model(batch[0])).square().mean()


@habit()
def function_with_saved_tensors(model: Any, batch: Any) -> Tensor:
    return Exponential.apply(model(batch[0])).mean()


@habit()
def checkpointed(model: Any, batch: Any) -> Tensor:
    return checkpoint(model, batch[0], use_reentrant=False).square().mean()


@habit()
def gradient_hook(model: Any, batch: Any) -> Tensor:
    hidden = model(batch[0])
    hidden.register_hook(lambda grad: grad.clamp(-0.01, 0.01))
    return hidden.square().mean()


@habit()
def activations_in_place(model: Any, batch: Any) -> Tensor:
    hidden = model(batch[0]) * 1
    hidden[:, 0] += 1
    hidden[:, 1:3] *= 2
    return hidden.relu_().square().mean()


@habit()
def masked_fill_in_place(model: Any, batch: Any) -> Tensor:
    hidden = model(batch[0]) * 1
    hidden[hidden < 0] = 0
    hidden[batch[1] > 1] = torch.ones(4)
    return hidden.square().mean()


def _slope_by_where(model: Any, batch: Any) -> Tensor:
    hidden = model(batch[0])
    return torch.where(hidden < 0, hidden * 0.1, hidden).square().mean()


@habit(refused="torch.where(mask, changed, x)", instead=_slope_by_where)
def masked_change_in_place(model: Any, batch: Any) -> Tensor:
    hidden = model(batch[0]) * 1
    below = hidden < 0
    hidden[below] = hidden[below] * 0.1
    return hidden.square().mean()


@habit()
def stochastic_depth(model: Any, batch: Any) -> Tensor:
    kept = (torch.rand(8, 1) < 0.8).float() / 0.8
    return (batch[0][:, :4] + kept * model(batch[0])).square().mean()


def _depth_by_where(model: Any, batch: Any) -> Tensor:
    hidden = batch[0][:, :4]
    return torch.where(torch.rand(()) < 0.8, hidden + model(batch[0]), hidden).square().mean()


@habit(refused="torch.where(condition, a, b)", instead=_depth_by_where)
def stochastic_depth_by_an_if(model: Any, batch: Any) -> Tensor:
    hidden = batch[0][:, :4]
    if torch.rand(()) < 0.8:
        hidden = hidden + model(batch[0])
    else:
        hidden = hidden + 0 * model(batch[0])
    return hidden.square().mean()


@habit()
def dropout_of_all_kinds(model: Any, batch: Any) -> Tensor:
    hidden = F.alpha_dropout(F.dropout(model(batch[0]), 0.3), 0.3, training=True)
    return F.dropout1d(hidden.reshape(1, 8, 4), 0.3).square().mean()


@habit()
def noise_of_a_given_size(model: Any, batch: Any) -> Tensor:
    hidden = model(batch[0])
    return torch.normal(hidden, hidden.detach().abs()).square().mean() + hidden.square().mean()


@habit()
def random_rows(model: Any, batch: Any) -> Tensor:
    return model(batch[0])[torch.randperm(8)[:4]].square().mean()


def _rrelu_by_where(model: Any, batch: Any) -> Tensor:
    x = model(batch[0])
    return torch.where(x < 0, x * torch.empty_like(x).uniform_(0.1, 0.3), x).square().mean()


@habit(refused="uniform_(lower, upper)", instead=_rrelu_by_where, redrawn=True)
def randomized_slope(model: Any, batch: Any) -> Tensor:
    return F.rrelu(model(batch[0]), 0.1, 0.3, training=True).square().mean()


def _noise_given(model: Any, batch: Any) -> Tensor:
    return (model(batch[0]) * batch[2]).square().mean()


@habit(
    refused="Draw them where the batch is made",
    instead=_noise_given,
    given=lambda batch: (*batch, torch.poisson(batch[0][:, :4].abs())),
    redrawn=True,
)
def shot_noise(model: Any, batch: Any) -> Tensor:
    return (model(batch[0]) * torch.poisson(batch[0][:, :4].abs())).square().mean()


def squares(model: Any, batch: Any) -> Tensor:
    return model(batch[0]).square().mean()


@habit(build=lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)))
def batch_statistics(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@habit(build=lambda: parametrizations.weight_norm(nn.Linear(6, 4)))
def weight_norm(model: Any, batch: Any) -> Tensor:
    return squares(model, batch)


@habit(build=lambda: parametrizations.spectral_norm(nn.Linear(6, 4)))
def spectral_norm(model: Any, batch: Any) -> Tensor:
    return squares(model, batch)


@habit(build=lambda: parametrizations.orthogonal(nn.Linear(6, 4)))
def orthogonal(model: Any, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[0][:, :4]).square().mean()


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT


def _symmetric() -> nn.Module:
    layer = nn.Linear(6, 6)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


@habit(build=_symmetric)
def parametrized(model: Any, batch: Any) -> Tensor:
    return squares(model, batch)


class Averaging(nn.Module):
    """Keeps a moving average of its inputs, and a codebook of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        with torch.no_grad():
            self.mean.lerp_(hidden.mean(0), 0.1)
            self.count += 1
        return hidden - self.mean


@habit(build=Averaging)
def buffer_with_a_moving_average(model: Any, batch: Any) -> Tensor:
    return squares(model, batch)


def sequences() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 5, 6), torch.tensor([5, 2, 3])


@habit(build=lambda: nn.LSTM(6, 4, 2, batch_first=True, bidirectional=True), batch=sequences)
def lstm_with_hidden_state(model: Any, batch: Any) -> Tensor:
    first = torch.zeros(4, 3, 4)
    output, (hidden, cell) = model(batch[0], (first, first))
    return output.square().mean() + hidden.mean() + cell.square().mean()


@habit(build=lambda: nn.GRUCell(6, 4), batch=sequences)
def cell_in_a_loop(model: Any, batch: Any) -> Tensor:
    hidden, total = torch.zeros(3, 4), 0
    for i in range(batch[0].shape[1]):
        new = model(batch[0][:, i], hidden)
        hidden = torch.where((i < batch[1])[:, None], new, hidden)
        total = total + hidden.square().mean()
    return total


def _last_of_padded(model: Any, batch: Any) -> Tensor:
    return model(batch[0])[0][range(3), batch[1] - 1].square().mean()


@habit(
    build=lambda: nn.GRU(6, 4, batch_first=True), batch=sequences,
    refused="output[range(n), lengths - 1]", instead=_last_of_padded,
)  # fmt: skip
def packed_sequence(model: Any, batch: Any) -> Tensor:
    packed = rnn.pack_padded_sequence(*batch, batch_first=True, enforce_sorted=False)
    return model(packed)[1].square().mean()


def _steps_by_a_mask(model: Any, batch: Any) -> fl.Mean:
    mask = (torch.arange(5) < batch[1][:, None]).float()
    return fl.Mean((mask * model(batch[0]).square().mean(-1)).sum(), mask.sum())


@habit(
    build=lambda: nn.Linear(6, 4), batch=sequences,
    refused="torch.arange(size) < n", instead=_steps_by_a_mask,
)  # fmt: skip
def rows_up_to_their_lengths(model: Any, batch: Any) -> Tensor:
    parts = [x[:n] for x, n in zip(batch[0], batch[1].tolist(), strict=True)]
    return model(torch.cat(parts)).square().mean()


@habit(build=lambda: nn.MultiheadAttention(6, 2, 0.1, batch_first=True), batch=sequences)
def attention_with_padding(model: Any, batch: Any) -> Tensor:
    padding = torch.arange(5) >= batch[1][:, None]
    output, weights = model(batch[0], batch[0], batch[0], key_padding_mask=padding)
    return output.square().mean() + weights.square().mean()


def tokens() -> tuple[Tensor, Tensor]:
    return torch.randint(9, (7,)), torch.tensor([0, 3, 4])


@habit(build=lambda: nn.EmbeddingBag(9, 4, mode="mean"), batch=tokens)
def bag_of_embeddings(model: Any, batch: Any) -> fl.Mean:
    return fl.Mean(model(*batch).square().sum(), len(batch[1]))


@habit(build=lambda: nn.Embedding(9, 4, padding_idx=0), batch=tokens)
def tied_embedding(model: Any, batch: Any) -> fl.Mean:
    scores = model(batch[0][:-1]) @ model.weight.T
    return fl.Mean(F.cross_entropy(scores, batch[0][1:], reduction="sum"), len(scores))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.weight = nn.Linear(6, 4), nn.Parameter(torch.randn(4, 6, 5) / 3)


@habit(build=Experts)
def routing_to_the_best_two(model: Any, batch: Any) -> Tensor:
    shares, chosen = model.gate(batch[0]).softmax(-1).topk(2)
    outputs = torch.einsum("nd,nkde->nke", batch[0], model.weight[chosen])
    return (shares[..., None] * outputs).sum(1).square().mean()


def _all_experts(model: Any, batch: Any) -> Tensor:
    share, chosen = model.gate(batch[0]).softmax(-1).max(-1)
    output = torch.zeros(8, 5)
    for k in range(4):
        taken = (chosen == k)[:, None]
        output = torch.where(taken, share[:, None] * (batch[0] @ model.weight[k]), output)
    return output.square().mean()


@habit(build=Experts, refused="torch.where(mask, changed, x)", instead=_all_experts)
def routing_in_a_loop(model: Any, batch: Any) -> Tensor:
    share, chosen = model.gate(batch[0]).softmax(-1).max(-1)
    output = torch.zeros(8, 5)
    for k in range(4):
        (taken,) = torch.where(chosen == k)
        output[taken] = share[taken, None] * (batch[0][taken] @ model.weight[k])
    return output.square().mean()


@habit()
def scatter_to_groups(model: Any, batch: Any) -> Tensor:
    group, hidden = batch[1][:, None].expand(8, 4), model(batch[0])
    most = torch.zeros(4, 4).scatter_reduce(0, group, hidden, "amax", include_self=False)
    return most.sum() + torch.zeros(4, 4).scatter_add(0, group, hidden).square().mean()


@habit()
def segments(model: Any, batch: Any) -> Tensor:
    lengths = torch.tensor([3, 5])
    return torch.segment_reduce(model(batch[0]), "mean", lengths=lengths, axis=0).square().sum()


@habit()
def sparse_product(model: Any, batch: Any) -> Tensor:
    places, values = torch.tensor([[0, 1], [2, 3]]), torch.ones(2)
    return torch.sparse.mm(torch.sparse_coo_tensor(places, values, (8, 8)), model(batch[0])).sum()


@habit()
def spectrum(model: Any, batch: Any) -> Tensor:
    return torch.fft.rfft(model(batch[0])).abs().mean()


@habit()
def short_time_spectrum(model: Any, batch: Any) -> Tensor:
    sound, window = model(batch[0]).reshape(1, -1), torch.hann_window(8)
    return torch.stft(sound, 8, 4, window=window, return_complex=True).abs().square().mean()


@habit()
def complex_numbers(model: Any, batch: Any) -> Tensor:
    z = torch.view_as_complex(model(batch[0]).reshape(8, 2, 2))
    return (z * z.conj()).real.sum() + z.angle().sum()


@habit()
def gaussian_process(model: Any, batch: Any) -> Tensor:
    z = model(batch[0])
    kernel = (-torch.cdist(z, z).square()).exp() + 0.1 * torch.eye(8)
    factor, y = torch.linalg.cholesky(kernel), batch[0][:, :1]
    return (y * torch.cholesky_solve(y, factor)).sum() + 2 * factor.diagonal().log().sum()


@habit()
def determinant_and_solve(model: Any, batch: Any) -> Tensor:
    z = model(batch[0])
    a = z.T @ z + torch.eye(4)
    return torch.linalg.slogdet(a)[1] + torch.linalg.solve(a, z.T).square().mean()


@habit()
def singular_values(model: Any, batch: Any) -> Tensor:
    z = model(batch[0])
    return torch.linalg.svdvals(z).sum() + torch.linalg.eigvalsh(z.T @ z)[-1]


@habit()
def matrix_exponential(model: Any, batch: Any) -> Tensor:
    z = model(batch[0])
    return torch.matrix_exp(0.1 * z.T @ z).square().mean()


def _least_squares_by_pinv(model: Any, batch: Any) -> Tensor:
    return (torch.linalg.pinv(model(batch[0])) @ batch[0][:, :1]).square().mean()


@habit(refused="torch.linalg.pinv(a) @ b", instead=_least_squares_by_pinv)
def least_squares(model: Any, batch: Any) -> Tensor:
    return torch.linalg.lstsq(model(batch[0]), batch[0][:, :1]).solution.square().mean()


@habit()
def cumulative(model: Any, batch: Any) -> Tensor:
    z = model(batch[0])
    return z.cumsum(0).logcumsumexp(-1).mean() + z.cummax(0).values.mean() + z.median()


@habit()
def buckets(model: Any, batch: Any) -> Tensor:
    edges = torch.tensor([-0.5, 0.0, 0.5])
    return model(batch[0]).gather(1, torch.bucketize(batch[0][:, :2], edges)).mean()


@habit()
def sampled_picture(model: Any, batch: Any) -> Tensor:
    places = model(batch[0]).tanh().reshape(1, 4, 4, 2)
    return F.grid_sample(batch[0].reshape(1, 1, 8, 6), places, align_corners=False).square().mean()


@habit(build=lambda: nn.Conv2d(1, 4, 3), batch=lambda: (torch.randn(2, 1, 8, 8), None))
def upsampled_patches(model: Any, batch: Any) -> Tensor:
    features = F.interpolate(model(batch[0]), scale_factor=2, mode="bilinear")
    patches = F.unfold(F.adaptive_avg_pool2d(features, 5), 2)
    return F.fold(patches, 5, 2).square().mean()


@habit()
def jacobian(model: Any, batch: Any) -> Tensor:
    return torch.func.vmap(torch.func.jacrev(model))(batch[0]).square().mean()


@habit()
def directional_derivative(model: Any, batch: Any) -> Tensor:
    value, change = torch.func.jvp(model, (batch[0],), (torch.ones_like(batch[0]),))
    return change.square().mean() + value.mean()


@habit()
def gradients_per_example(model: Any, batch: Any) -> Tensor:
    slopes = torch.func.vmap(torch.func.grad(lambda x: model(x).sum()))(batch[0])
    return slopes.square().mean()


@habit()
def autocast(model: Any, batch: Any) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(batch[0])
    return F.cross_entropy(scores.float(), batch[1])


class Encoding(collections.UserDict[str, Tensor]):
    """Like a BatchEncoding of transformers: a mapping that is no dict."""


@habit(batch=lambda: Encoding(x=torch.randn(8, 6), y=torch.randint(4, (8,))))
def batch_that_is_a_mapping(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch["x"]), batch["y"])


@dataclasses.dataclass(frozen=True)
class Example:
    x: Tensor
    y: Tensor


@habit(batch=lambda: {"data": Example(torch.randn(8, 6), torch.randint(4, (8,))), "about": "it"})
def batch_with_a_dataclass(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch["data"].x), batch["data"].y)


Pair = collections.namedtuple("Pair", "x y")


@habit(batch=lambda: Pair(torch.randn(8, 6), [torch.randint(4, (8,)), None]))
def batch_that_is_a_namedtuple(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y[0])
