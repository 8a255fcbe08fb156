"""Loops that are written by hand in PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value

from .loops import Training, looped
from .problems import LR, WEIGHT_DECAY, Problem
from .timing import Clock


def eager(problem: Problem, clock: Clock, channels_last: bool = False, **options: Any) -> Training:
    """The loop of PyTorch's tutorials; `options` are those of the optimizer."""
    model, batches = _laid_out(problem, channels_last)
    optimizer = adamw(model, **options)
    step = classic(problem, functools.partial(problem.loss, model), optimizer)
    return looped(problem, clock, step, Tensor.item, batches=batches)


def compiled_model(problem: Problem, clock: Clock) -> Training:
    """The same around ``torch.compile(model)``."""
    model = problem.model()
    loss_of = functools.partial(problem.loss, torch.compile(model, fullgraph=True))
    step = classic(problem, loss_of, adamw(model, fused=True))
    return looped(problem, clock, step, Tensor.item, graphs=inductor_graphs)


def compiled_loss(
    problem: Problem, clock: Clock, channels_last: bool = False, **how: Any
) -> Training:
    """Model and loss compiled together; `how` is for ``torch.compile``."""
    model, batches = _laid_out(problem, channels_last)
    step = classic(problem, _compiled_loss(problem, model, **how), adamw(model, fused=True))
    return looped(problem, clock, step, Tensor.item, batches=batches, graphs=inductor_graphs)


def compiled_optimizer(problem: Problem, clock: Clock) -> Training:
    """Model and loss compiled together, and the optimizer's step by itself."""
    model = problem.model()
    optimizer = adamw(model, foreach=True)  # a fused kernel has nothing to compile
    step = classic(problem, _compiled_loss(problem, model), optimizer, torch.compile)
    return looped(problem, clock, step, Tensor.item, graphs=inductor_graphs)


def one_graph(problem: Problem, clock: Clock, **options: Any) -> Training:
    """All of a step in one function for ``torch.compile``: no ``torch.optim``, no ``backward()``.

    The gradient is that of ``torch.func``, AdamW is written out, and changes its tensors in place.
    """
    module = problem.model()
    params = {name: p.detach() for name, p in module.named_parameters()}
    means = {name: torch.zeros_like(p) for name, p in params.items()}
    squares = {name: torch.zeros_like(p) for name, p in params.items()}
    count = torch.zeros(())

    def loss_of(params: dict[str, Tensor], part: Any) -> Tensor:
        with problem.autocast():
            return problem.loss(lambda *inputs: functional_call(module, params, inputs), part)

    def step(batch: Any) -> Tensor:
        results = [grad_and_value(loss_of)(params, part) for part in problem.parts(batch)]
        with torch.no_grad():
            count.add_(1)
            for name, p in params.items():
                g = sum(grads[name] for grads, _ in results) / problem.micro
                mean, square = means[name], squares[name]
                mean.lerp_(g, 1 - 0.9)
                square.mul_(0.999).addcmul_(g, g, value=1 - 0.999)
                root = (square / (1 - 0.999**count)).sqrt() + 1e-8
                p.mul_(1 - LR * WEIGHT_DECAY).sub_(LR * (mean / (1 - 0.9**count)) / root)
        return sum(loss for _, loss in results) / problem.micro

    compiled = torch.compile(step, fullgraph=True, options=options)
    return looped(problem, clock, compiled, Tensor.item, graphs=inductor_graphs)


def adamw(model: torch.nn.Module, **options: Any) -> torch.optim.AdamW:
    """The optimizer of all loops that use one of PyTorch's."""
    return torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, **options)


def classic(
    problem: Problem,
    loss_of: Callable[[Any], Tensor],
    optimizer: torch.optim.Optimizer,
    transform: Callable[[Callable[[], Any]], Callable[[], Any]] = lambda step: step,
) -> Callable[[Any], Tensor]:
    """Zero the gradients, loss, backward, step; `transform` is for the step of the optimizer."""
    update = transform(optimizer.step)
    if problem.bf16:
        loss_of = torch.autocast("cpu", torch.bfloat16)(loss_of)

    def step(batch: Any) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        update()
        return loss

    def accumulated(batch: Any) -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for part in problem.parts(batch):
            loss = loss_of(part) / problem.micro
            loss.backward()
            total += loss.detach()
        update()
        return total

    return step if problem.micro == 1 else accumulated


def inductor_graphs() -> int:
    """How many graphs Inductor has compiled, or found in its cache, in this process."""
    from torch._dynamo.utils import counters  # importing it takes seconds

    return sum(counters["inductor"][f"fxgraph_cache_{how}"] for how in ("hit", "miss", "bypass"))


def _compiled_loss(problem: Problem, model: torch.nn.Module, **how: Any) -> Callable[[Any], Tensor]:
    """One graph, whatever Dynamo has to be told for that."""
    torch._dynamo.config.allow_rnn = True
    torch._dynamo.config.trace_autograd_ops = True
    compiled = torch.compile(lambda batch: problem.loss(model, batch), fullgraph=True, **how)
    return lambda batch: compiled(problem.ready(batch))


def _laid_out(problem: Problem, channels_last: bool) -> tuple[torch.nn.Module, Sequence[Any]]:
    """Model and batches; pictures and convolutions with the channels last, if asked for."""
    model = problem.model()
    if not channels_last:
        return model, problem.batches
    last = torch.channels_last
    return model.to(memory_format=last), [(x.to(memory_format=last), y) for x, y in problem.batches]
