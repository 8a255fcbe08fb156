"""Losses and tricks of training, as they are written in papers' code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fnloop as fl

from .habit import habits

LOSSES, habit = habits()


@habit()
def label_smoothing(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)


@habit()
def focal_loss(model: Any, batch: Any) -> Tensor:
    losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


@habit()
def dice_loss(model: Any, batch: Any) -> Tensor:
    p, t = model(batch[0]).softmax(-1), F.one_hot(batch[1], 4)
    return 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)


@habit()
def lovasz_softmax(model: Any, batch: Any) -> Tensor:
    p, total = model(batch[0]).softmax(-1), 0
    for c in range(4):
        there = (batch[1] == c).float()
        errors, order = (there - p[:, c]).abs().sort(descending=True)
        there = there[order]
        left = there.sum() - there.cumsum(0)
        index = 1 - left / (there.sum() + (1 - there).cumsum(0))
        total = total + (errors * torch.cat([index[:1], index.diff()])).sum()
    return total


@habit()
def mixup(model: Any, batch: Any) -> Tensor:
    x, y = batch
    share, order = torch.rand(()), torch.randperm(len(x))
    scores = model(share * x + (1 - share) * x[order])
    return share * F.cross_entropy(scores, y) + (1 - share) * F.cross_entropy(scores, y[order])


@habit()
def cutmix_by_a_mask(model: Any, batch: Any) -> Tensor:
    x, y = batch
    start, order = torch.randint(6, (2,)), torch.randperm(len(x))
    places = torch.arange(6)
    inside = (places >= start.min()) & (places < start.max())
    scores, share = model(torch.where(inside, x[order], x)), 1 - inside.float().mean()
    return share * F.cross_entropy(scores, y) + (1 - share) * F.cross_entropy(scores, y[order])


@habit()
def info_nce(model: Any, batch: Any) -> Tensor:
    two_views = torch.cat([batch[0], batch[0] + 0.1 * torch.randn_like(batch[0])])
    z = F.normalize(model(two_views), dim=-1)
    scores = z @ z.T / 0.1
    scores.fill_diagonal_(-1e9)
    return F.cross_entropy(scores, (torch.arange(16) + 8) % 16)


@habit()
def clip_contrast(model: Any, batch: Any) -> Tensor:
    a, b = F.normalize(model(batch[0]), dim=-1), F.normalize(model(batch[0].flip(1)), dim=-1)
    scores, pairs = a @ b.T * 10, torch.arange(len(a))
    return (F.cross_entropy(scores, pairs) + F.cross_entropy(scores.T, pairs)) / 2


@habit()
def barlow_twins(model: Any, batch: Any) -> Tensor:
    a, b = model(batch[0]), model(batch[0] + 0.1 * torch.randn_like(batch[0]))
    a, b = ((z - z.mean(0)) / (z.std(0) + 1e-3) for z in (a, b))
    correlations = a.T @ b / len(a)
    return (correlations - torch.eye(4)).square().sum()


@habit()
def triplets_with_hard_mining(model: Any, batch: Any) -> Tensor:
    z, same = model(batch[0]), batch[1][:, None] == batch[1]
    distances = torch.cdist(z, z)
    farthest = distances.masked_fill(~same, -1).amax(1)
    nearest = distances.masked_fill(same, 1e9).amin(1)
    return F.relu(farthest - nearest + 0.2).mean()


def _supervised_contrast_by_weights(model: Any, batch: Any) -> Tensor:
    z, same = model(batch[0]), (batch[1][:, None] == batch[1]).float()
    distances = torch.cdist(z, z)
    near = (same * distances).sum() / same.sum()
    return near - ((1 - same) * distances).sum() / (1 - same).sum()


@habit(refused="(w * x).sum() / w.sum() for one term", instead=_supervised_contrast_by_weights)
def supervised_contrast_of_picked_pairs(model: Any, batch: Any) -> Tensor:
    z, same = model(batch[0]), batch[1][:, None] == batch[1]
    distances = torch.cdist(z, z)
    return distances[same].mean() - distances[~same].mean()


@habit()
def masked_language_model(model: Any, batch: Any) -> Tensor:
    x, y = batch
    hidden = torch.rand(len(x)) < 0.3
    x, y = x.clone(), y.clone()
    x[hidden] = 0
    y[~hidden] = -100
    return F.cross_entropy(model(x), y, reduction="sum")


@habit()
def masked_language_model_by_bernoulli(model: Any, batch: Any) -> Tensor:
    hidden = torch.bernoulli(torch.full((8,), 0.3)).bool()
    x = batch[0].masked_fill(hidden[:, None], 0.0)
    return F.cross_entropy(model(x), batch[1].masked_fill(~hidden, -100), reduction="sum")


def _labelled_by_weights(model: Any, batch: Any) -> fl.Mean:
    w = (batch[1] > 0).float()
    losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return fl.Mean((w * losses).sum(), w.sum())


@habit(refused="fl.Mean((w * losses).sum(), w.sum())", instead=_labelled_by_weights)
def labelled_rows_by_a_mask(model: Any, batch: Any) -> Tensor:
    labelled = batch[1] > 0
    return F.cross_entropy(model(batch[0])[labelled], batch[1][labelled])


@habit(refused="fl.Mean((w * losses).sum(), w.sum())", instead=_labelled_by_weights)
def labelled_rows_by_nonzero(model: Any, batch: Any) -> Tensor:
    (places,) = (batch[1] > 0).nonzero(as_tuple=True)
    return F.cross_entropy(model(batch[0])[places], batch[1][places])


def _positive_by_weights(model: Any, batch: Any) -> fl.Mean:
    w = (batch[0][:, :4] > 0).float()
    return fl.Mean((w * model(batch[0]).square()).sum(), w.sum())


@habit(refused="fl.Mean((w * losses).sum(), w.sum())", instead=_positive_by_weights)
def masked_select(model: Any, batch: Any) -> Tensor:
    return torch.masked_select(model(batch[0]), batch[0][:, :4] > 0).square().mean()


@habit()
def hardest_examples(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none").topk(4).values.mean()


def _hard_examples_by_weights(model: Any, batch: Any) -> fl.Mean:
    losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    w = (losses.detach() > 1.0).float()
    return fl.Mean((w * losses).sum(), w.sum())


@habit(refused="fl.Mean((w * losses).sum(), w.sum())", instead=_hard_examples_by_weights)
def examples_above_a_threshold(model: Any, batch: Any) -> Tensor:
    losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return losses[losses > 1.0].mean()


@habit()
def distillation(model: Any, batch: Any) -> Tensor:
    with torch.no_grad():
        teacher = model(batch[0].flip(1)).softmax(-1)
    return F.kl_div(model(batch[0]).log_softmax(-1), teacher, reduction="batchmean")


@habit()
def gradient_penalty(model: Any, batch: Any) -> Tensor:
    x = batch[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return (slope.norm(2, -1) - 1).square().mean()


@habit()
def gradient_norm_of_the_parameters(model: Any, batch: Any) -> Tensor:
    loss = F.cross_entropy(model(batch[0]), batch[1])
    grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return loss + 0.1 * sum(g.square().sum() for g in grads)


@habit()
def physics_informed_second_derivatives(model: Any, batch: Any) -> Tensor:
    x = batch[0].clone().requires_grad_()
    u = model(x)[:, 0]
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)
    return (second[:, 0] + u).square().mean()


@habit()
def hutchinsons_trace(model: Any, batch: Any) -> Tensor:
    x = batch[0].clone().requires_grad_()
    probe = torch.randint_like(x, 2) * 2 - 1
    (slope,) = torch.autograd.grad(model(x)[:, 0].sum(), x, create_graph=True)
    (curved,) = torch.autograd.grad((slope * probe).sum(), x, create_graph=True)
    return (curved * probe).sum()


@habit()
def adversarial_examples(model: Any, batch: Any) -> Tensor:
    x = batch[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(x), batch[1]), x)
    return F.cross_entropy(model(batch[0] + 0.1 * slope.sign()), batch[1])


@habit()
def meta_learning_inner_step(model: Any, batch: Any) -> Tensor:
    names = dict(model.named_parameters())
    inner = F.cross_entropy(model(batch[0]), batch[1])
    grads = torch.autograd.grad(inner, list(names.values()), create_graph=True)
    moved = {n: p - 0.1 * g for (n, p), g in zip(names.items(), grads, strict=True)}
    return F.cross_entropy(torch.func.functional_call(model, moved, batch[0]), batch[1])


@habit()
def vae(model: Any, batch: Any) -> Tensor:
    mean, log_scale = model(batch[0]).chunk(2, -1)
    z = mean + log_scale.exp() * torch.randn_like(mean)
    divergence = 0.5 * (mean.square() + (2 * log_scale).exp() - 1) - log_scale
    return (z - batch[0][:, :2]).square().mean() + divergence.sum(-1).mean()


@habit()
def vae_of_distributions(model: Any, batch: Any) -> Tensor:
    mean, log_scale = model(batch[0]).chunk(2, -1)
    q = torch.distributions.Normal(mean, log_scale.exp())
    prior = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
    divergence = torch.distributions.kl_divergence(q, prior).sum(-1).mean()
    return (q.rsample() - batch[0][:, :2]).square().mean() + divergence


@habit()
def policy_gradient(model: Any, batch: Any) -> Tensor:
    policy = torch.distributions.Categorical(logits=model(batch[0]))
    action = policy.sample()
    reward = (action == batch[1]).float()
    return -(policy.log_prob(action) * reward).mean() - 0.01 * policy.entropy().mean()


@habit()
def clipped_policy_ratio(model: Any, batch: Any) -> Tensor:
    log_p = model(batch[0]).log_softmax(-1).gather(1, batch[1][:, None])
    ratio, gain = (log_p - log_p.detach()).exp(), batch[0][:, :1]
    return -torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()


@habit()
def mixture_density(model: Any, batch: Any) -> Tensor:
    which = torch.distributions.Categorical(logits=model(batch[0]))
    parts = torch.distributions.Normal(model(batch[0].flip(1)), torch.ones(()))
    mixture = torch.distributions.MixtureSameFamily(which, parts)
    return -mixture.log_prob(batch[0][:, 0]).mean()


@habit()
def bernoulli_likelihood(model: Any, batch: Any) -> Tensor:
    p = torch.distributions.Bernoulli(logits=model(batch[0]))
    return -p.log_prob((batch[0][:, :4] > 0).float()).mean()


def _mixup_given(model: Any, batch: Any) -> Tensor:
    x, y, share = batch
    scores = model(share * x + (1 - share) * x.flip(0))
    return share * F.cross_entropy(scores, y) + (1 - share) * F.cross_entropy(scores, y.flip(0))


@habit(
    refused="Draw them where the batch is made",
    instead=_mixup_given,
    given=lambda batch: (*batch, torch.distributions.Beta(0.2, 0.2).sample()),
    redrawn=True,
)
def mixup_by_beta(model: Any, batch: Any) -> Tensor:
    share = torch.distributions.Beta(0.2, 0.2).sample()
    return _mixup_given(model, (*batch, share))


@habit()
def gumbel_softmax(model: Any, batch: Any) -> Tensor:
    choice = F.gumbel_softmax(model(batch[0]), tau=0.5, hard=True)
    return (choice * batch[0][:, :4]).sum()


class Codes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.book = nn.Linear(6, 4), nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)


@habit(build=Codes)
def straight_through_codes(model: Any, batch: Any) -> Tensor:
    z = model(batch[0])
    q = model.book[torch.cdist(z, model.book).argmin(1)]
    commit = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
    return (z + (q - z).detach()).square().mean() + commit


@habit()
def boxes_matched_by_overlap(model: Any, batch: Any) -> Tensor:
    boxes, targets = model(batch[0]).sigmoid(), batch[0][:, :4].sigmoid()
    best, which = torch.minimum(boxes[:, None], targets).amin(-1).max(0)
    found = (best > 0.3).float()
    errors = (boxes - targets[which]).abs().sum(-1)
    return (errors * found).sum() / found.sum().clamp(min=1)


def _found_by_where(model: Any, batch: Any) -> Tensor:
    boxes, w = model(batch[0]), (batch[1] > 1).float()
    return (w * boxes.abs().mean(-1)).sum() / w.sum().clamp(min=1)


@habit(refused="A part that may be empty has the weight zero", instead=_found_by_where)
def if_any_box_is_found(model: Any, batch: Any) -> Tensor:
    boxes, found = model(batch[0]), batch[1] > 1
    if found.any():
        return boxes[found].abs().mean()
    return boxes.sum() * 0


@habit()
def set_loss_by_nearest(model: Any, batch: Any) -> Tensor:
    distances = torch.cdist(model(batch[0]), batch[0][:, :4])
    return distances.amin(0).mean() + distances.amin(1).mean()


@habit()
def optimal_transport(model: Any, batch: Any) -> Tensor:
    cost = torch.cdist(model(batch[0]), batch[0][:, :4])
    plan = -cost
    for _ in range(5):
        plan = plan - plan.logsumexp(1, True)
        plan = plan - plan.logsumexp(0, True)
    return (plan.exp() * cost).sum()


@habit()
def sorted_wasserstein(model: Any, batch: Any) -> Tensor:
    return (model(batch[0]).sort(0).values - batch[0][:, :4].sort(0).values).abs().mean()


@habit()
def quantiles(model: Any, batch: Any) -> Tensor:
    scores = model(batch[0])
    return torch.quantile(scores.flatten(), 0.9) + scores.kthvalue(2, -1).values.sum()


@habit()
def soft_histogram(model: Any, batch: Any) -> Tensor:
    centers = torch.linspace(-1, 1, 5)
    counts = torch.exp(-(model(batch[0]).flatten()[:, None] - centers).square()).sum(0)
    return (counts / counts.sum()).square().sum()


@habit()
def weights_by_histogram(model: Any, batch: Any) -> Tensor:
    scores = model(batch[0])
    return scores.square().mean() * torch.histc(scores.detach(), 4, -1, 1).max()


def _counted_by_index_add(model: Any, batch: Any) -> Tensor:
    counts = torch.zeros(4).index_add(0, batch[1], torch.ones(8))
    return F.cross_entropy(model(batch[0]), batch[1], 1 / (1 + counts))


@habit(refused="torch.zeros(n).index_add(0, x, weights)", instead=_counted_by_index_add)
def weights_by_bincount(model: Any, batch: Any) -> Tensor:
    counts = torch.bincount(batch[1], minlength=4)
    return F.cross_entropy(model(batch[0]), batch[1], 1 / (1 + counts))


def _prototypes_by_index_add(model: Any, batch: Any) -> Tensor:
    sums = torch.zeros(4, 4).index_add(0, batch[1], model(batch[0]))
    counts = torch.zeros(4).index_add(0, batch[1], torch.ones(8))
    return (sums / counts.clamp(min=1)[:, None]).square().sum()


@habit(refused="torch.zeros(n).index_add(0, x, weights)", instead=_prototypes_by_index_add)
def prototypes_of_the_classes_there(model: Any, batch: Any) -> Tensor:
    z, total = model(batch[0]), 0
    for c in torch.unique(batch[1]):
        total = total + z[batch[1] == c].mean(0).square().sum()
    return total


def _one_hot_of_four(model: Any, batch: Any) -> Tensor:
    return (model(batch[0]).softmax(-1) - F.one_hot(batch[1], 4)).square().sum()


@habit(refused="F.one_hot(y, n)", instead=_one_hot_of_four)
def brier_score_by_one_hot(model: Any, batch: Any) -> Tensor:
    return (model(batch[0]).softmax(-1) - F.one_hot(batch[1])).square().sum()


@habit(refused='"CTC"')  # the remedy is the recipe of docs/how-to/compile.md, which runs there
def ctc(model: Any, batch: Any) -> Tensor:
    scores = model(batch[0])[:, None].log_softmax(-1)
    return F.ctc_loss(scores, torch.tensor([[1, 2]]), torch.tensor([8]), torch.tensor([2]))
