"""Hugging Face Accelerate."""

from __future__ import annotations

from typing import Any

import accelerate
import torch
from torch import Tensor

from .by_hand import adamw
from .loops import Training, looped
from .problems import Problem
from .timing import Clock


def prepared(problem: Problem, clock: Clock) -> Training:
    """The loop by hand, with model and optimizer prepared, and its ``backward``."""
    accelerator = accelerate.Accelerator(
        cpu=True,
        mixed_precision="bf16" if problem.bf16 else "no",
        gradient_accumulation_steps=problem.micro,
    )
    model = problem.model()
    model, optimizer = accelerator.prepare(model, adamw(model, fused=True))

    def step(batch: Any) -> Tensor:
        optimizer.zero_grad()
        loss = problem.loss(model, batch)
        accelerator.backward(loss)
        optimizer.step()
        return loss

    def accumulated(batch: Any) -> Tensor:
        total = torch.zeros(())
        for part in problem.parts(batch):
            with accelerator.accumulate(model):
                loss = problem.loss(model, part)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                total += loss.detach()
        return total / problem.micro

    return looped(problem, clock, step if problem.micro == 1 else accumulated, Tensor.item)
