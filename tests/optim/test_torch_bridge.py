from __future__ import annotations

import warnings

import pytest
import torch

from fnloop.optim.chains import chain
from fnloop.optim.torch_bridge import from_torch
from fnloop.optim.transforms import clip_by_norm
from fnloop.schedules.decay import cosine
from fnloop.trees.equal import tree_equal
from fnloop.trees.nodes import tree_map
from fnloop.values.tensors import Tensors

SHAPES = {"w": (4, 3), "b": (3,)}


def draw(seed, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return Tensors({n: torch.randn(s, generator=generator) for n, s in shapes.items()})


class Heavy(torch.optim.Optimizer):
    """As third-party optimizers are written: lazy state, Python numbers, a group that changes."""

    def __init__(self, params, lr=0.1, beta=0.9, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay, "k": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            group["total"] = group.get("total", 0.0) + group["lr"]
            for p in group["params"]:
                state = self.state[p]
                if len(state) == 0:
                    state["step"] = 0
                    state["mean"] = torch.zeros_like(p.data)
                    state["best"] = None
                    state["factors"] = {"row": torch.ones(p.shape[0]), "uses": 0}
                    state["last"] = [p.data.clone(), p.grad.clone()]
                assert type(state["step"]) is int and type(state["factors"]["uses"]) is int
                assert state["best"] is None and type(group["k"]) is int
                state["step"] += 1
                state["factors"]["uses"] += 1
                state["factors"]["row"].mul_(0.9)
                state["mean"].mul_(group["beta"]).add_(p.grad, alpha=1 - group["beta"])
                direction = state["mean"] / (1 - group["beta"] ** state["step"])
                direction = direction + 0.01 * (p.data - state["last"][0]) + group["k"] * 1e-4
                state["last"] = [p.data.clone(), p.grad.clone()]
                p.data.mul_(1 - group["lr"] * group["weight_decay"] * group["total"])
                p.data.add_(direction * state["factors"]["row"].mean(), alpha=-group["lr"])


CLASSES = [
    (torch.optim.ASGD, {"lr": 0.1, "t0": 10.0}),
    (torch.optim.Adadelta, {}),
    (torch.optim.Adafactor, {}),
    (torch.optim.Adagrad, {"lr_decay": 0.1}),
    (torch.optim.Adam, {"lr": 0.1, "betas": (0.8, 0.9), "amsgrad": True}),
    (torch.optim.AdamW, {"lr": 0.1}),
    (torch.optim.Adamax, {}),
    (torch.optim.Muon, {"lr": 0.1}),
    (torch.optim.NAdam, {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    (torch.optim.RAdam, {}),
    (torch.optim.RMSprop, {"centered": True, "momentum": 0.5}),
    (torch.optim.Rprop, {}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1}),
    (torch.optim.SGD, {"lr": 0.1}),
    (Heavy, {"weight_decay": 0.1}),
]


@pytest.mark.lightning("H2")
@pytest.mark.parametrize(("cls", "keywords"), CLASSES, ids=lambda v: getattr(v, "__name__", ""))
def test_100_steps_are_those_of_the_real_thing(cls, keywords):
    shapes = {"w": (4, 3)} if cls is torch.optim.Muon else SHAPES
    params = draw(0, shapes)
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    reference = cls(list(leaves.values()), **keywords)
    optimizer = from_torch(cls, **keywords)
    memory = start = optimizer.init(params)
    for step in range(100):
        grads = draw(step + 1, shapes)
        for name, p in leaves.items():
            p.grad = grads[name].clone()
        reference.step()
        params, memory = optimizer.apply(grads, memory, params, step, True)
    for name, p in leaves.items():
        assert torch.equal(params[name], p.detach())
    describe = lambda tree: tree_map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert describe(start) == describe(memory)


def test_every_class_of_torch_is_covered_or_named_here():
    without = {"Optimizer", "LBFGS", "SparseAdam"}
    classes = {name for name in dir(torch.optim) if isinstance(getattr(torch.optim, name), type)}
    assert classes - without == {cls.__name__ for cls, _ in CLASSES} - {"Heavy"}


def test_a_schedule_is_torch_s_scheduler():
    params, steps = draw(0), 30
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    reference = torch.optim.SGD(list(leaves.values()), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(reference, steps)
    optimizer = from_torch(torch.optim.SGD, lr=cosine(0.1, steps), momentum=0.9)
    memory = optimizer.init(params)
    for step in range(steps):
        grads = draw(step + 1)
        for name, p in leaves.items():
            p.grad = grads[name].clone()
        reference.step()
        scheduler.step()
        params, memory = optimizer.apply(grads, memory, params, step, True)
    torch.testing.assert_close(params, {n: p.detach() for n, p in leaves.items()})


def test_reported_are_learning_rate_and_decay_also_if_left_out():
    optimizer = from_torch(torch.optim.Adam, eps=1e-6)
    assert optimizer.hyperparameters() == {"adam.lr": 1e-3, "adam.weight_decay": 0.0}
    optimizer = from_torch(torch.optim.SGD, lr=1, momentum=cosine(0.9, 10), name="slow")
    assert optimizer.resolve(0, {"slow.lr": 0.5}).hyperparameters() == {
        "slow.lr": 0.5,
        "slow.momentum": 0.9,
        "slow.weight_decay": 0.0,
    }


def test_scaling_to_zero_moves_nothing():
    params = draw(0)
    optimizer = from_torch(torch.optim.AdamW, lr=0.1)
    resolved = optimizer.resolve(0, {"adamw.lr": 0.0})
    new, _ = resolved.apply(draw(1), optimizer.init(params), params, 0, True)
    assert tree_equal(new, params)


def test_a_first_step_that_is_skipped_leaves_it_not_started():
    params = draw(0)
    optimizer = from_torch(torch.optim.Rprop)
    memory = optimizer.init(params)
    _, skipped = optimizer.apply(draw(1), memory, params, 0, torch.tensor(False))
    assert [bool(flag) for flag in skipped["rprop"]["started"].values()] == [False, False]
    once = optimizer.apply(draw(2), skipped, params, 0, torch.tensor(True))
    assert tree_equal(once, optimizer.apply(draw(2), memory, params, 0, True))
    assert once[1]["rprop"]["started"]


def test_behind_clipping_in_a_chain():
    params = draw(0)
    optimizer = chain(clip_by_norm(0.1), from_torch(torch.optim.SGD, lr=1.0))
    new, _ = optimizer.apply(draw(1), optimizer.init(params), params, 0, True)
    moved = torch.cat([(new[n] - params[n]).flatten() for n in params])
    assert float(moved.norm()) == pytest.approx(0.1, rel=1e-4)


def test_half_precision_parameters_are_optimised_in_float32():
    params = Tensors({"w": torch.full((2,), 256.0, dtype=torch.bfloat16)})
    optimizer = from_torch(torch.optim.SGD, lr=1.0, momentum=0.9)
    memory = optimizer.init(params)
    assert memory["sgd"]["state"]["w"]["tensors"]["momentum_buffer"].dtype == torch.float32
    grads = Tensors({"w": torch.full((2,), -1.5)})
    new, _ = optimizer.apply(grads, memory, params, 0, True)
    assert new["w"].dtype == torch.bfloat16 and new["w"][0].item() == 258.0


def test_global_random_state_is_left_alone_by_init():
    class Noisy(torch.optim.SGD):
        def step(self, closure=None):
            torch.rand(3)
            return super().step(closure)

    before = torch.get_rng_state()
    from_torch(Noisy, lr=0.1).init(draw(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_closures_are_refused():
    with pytest.raises(TypeError, match="LBFGS needs a closure"):
        from_torch(torch.optim.LBFGS, lr=0.1)


def test_what_is_no_class_or_keyword_is_refused():
    with pytest.raises(TypeError, match="takes a class and its keywords"):
        from_torch(torch.optim.SGD([torch.ones(1)], lr=0.1))
    with pytest.raises(TypeError, match="SGD has no learning_rate; it has lr, momentum"):
        from_torch(torch.optim.SGD, learning_rate=0.1)


def test_transforms_are_refused():
    params = draw(0)
    optimizer = from_torch(torch.optim.SGD, lr=0.1)
    memory = optimizer.init(params)
    with pytest.raises(RuntimeError, match="cannot be compiled"):
        torch.func.vmap(lambda g: optimizer.apply(g, memory, params, 0, True))(
            params.map_named(lambda p: p[None])
        )


class Hidden(torch.optim.SGD):
    steps = 0

    def step(self, closure=None):
        self.steps += 1
        return super().step(closure)


class Late(torch.optim.SGD):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p]["n"] = self.state[p].get("n", 0) + 1
            if self.state[p]["n"] == 4:
                self.state[p]["late"] = torch.ones(2)
        return super().step(closure)


class Odd(torch.optim.SGD):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p]["queue"] = {1, 2}
        return super().step(closure)


def test_state_that_cannot_be_followed_is_refused():
    params = draw(0)
    with pytest.raises(TypeError, match=r"Hidden keeps .* own attributes \(steps\)"):
        from_torch(Hidden, lr=0.1).init(params)
    with pytest.raises(TypeError, match=r"state\['w'\]\['queue'\] is \{1, 2\} \(set\)"):
        from_torch(Odd, lr=0.1).init(params)
    optimizer = from_torch(Late, lr=0.1)
    memory = optimizer.init(params)
    for step in range(3):
        params, memory = optimizer.apply(draw(1), memory, params, step, True)
    with pytest.raises(RuntimeError, match=r"state\.w\.tensors\.late"):
        optimizer.apply(draw(1), memory, params, 3, True)


def test_repr_reads_as_it_is_written():
    text = repr(from_torch(torch.optim.SGD, lr=0.1, nesterov=True, momentum=0.9))
    assert text == "from_torch(SGD, lr=0.1, momentum=0.9, weight_decay=0.0, nesterov=True)"


def test_nothing_is_warned():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        params = draw(0)
        optimizer = from_torch(torch.optim.Adam)
        optimizer.apply(draw(1), optimizer.init(params), params, 0, True)
