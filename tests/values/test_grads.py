"""Gradients as a weighted monoid."""

from __future__ import annotations

import pytest
import torch

import fnloop as fl
from fnloop.values.tensors import Tensors

TRUE = torch.tensor(True)


def part(value, weight, names="wb"):
    mean = Tensors({name: torch.tensor([value, 2 * value]) for name in names})
    return fl.Grads(mean, torch.as_tensor(weight), TRUE, {"loss": fl.Mean(value * weight, weight)})


@pytest.mark.parametrize("values", [[1.0], [1.0, 4.0], [1.0, 4.0, -2.0, 0.5]])
def test_folding_is_the_weighted_mean_and_changes_no_part(values):
    parts = [part(value, i + 1) for i, value in enumerate(values)]
    before = [p.mean.clone() for p in parts]
    whole = fl.Grads.fold(iter(parts))
    weights = torch.arange(1.0, len(values) + 1)
    expected = float((torch.tensor(values) * weights).sum() / weights.sum())
    for name in "wb":
        torch.testing.assert_close(whole.mean[name], torch.tensor([expected, 2 * expected]))
    assert int(whole.weight) == weights.sum() and whole.weight.dtype == torch.int64
    assert float(whole.metrics["loss"]) == pytest.approx(expected)
    assert all(p.mean == kept for p, kept in zip(parts, before, strict=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("vmapped", [False, True])
def test_a_part_of_weight_zero_changes_nothing_whatever_is_in_it(bad, vmapped):
    def merged(value):
        a, b = part(value, 2), part(bad, 0)
        return a.merge(b).mean, b.merge(a).mean

    if vmapped:
        made = torch.func.vmap(lambda _: merged(3.0))(torch.zeros(1))
        made = fl.tree_map(lambda leaf: leaf[0], made)
    else:
        made = merged(3.0)
    for mean in made:
        assert mean == part(3.0, 2).mean


@pytest.mark.parametrize("weights", [(0, 2, 2), (2, 0, 2), (2, 2, 0), (0, 0, 2), (0, 2, 0)])
def test_folding_writes_into_no_part(weights):
    shared = torch.tensor([3.0])  # autograd returns one tensor for the gradients of a + b
    parts = [
        fl.Grads(Tensors({"a": shared, "b": shared}), torch.tensor(w), TRUE, {}) for w in weights
    ]
    last = parts[-1].replace(mean={"a": torch.tensor([5.0]), "b": torch.tensor([5.0])})
    merged = fl.Grads.fold([*parts[:-1], last])
    expected = (3.0 * sum(weights[:-1]) + 5.0 * weights[-1]) / sum(weights)
    assert merged.mean["a"].item() == merged.mean["b"].item() == pytest.approx(expected)
    assert shared.item() == 3.0


@pytest.mark.parametrize("vmapped", [False, True])
def test_a_part_of_weight_zero_need_not_be_finite(vmapped):
    def finite(w):
        bad = part(torch.inf, w).replace(finite=torch.tensor(False), metrics={})
        good = part(1.0, 2).replace(metrics={})
        return good.merge(bad).finite, bad.merge(good).finite

    run = torch.func.vmap(finite) if vmapped else lambda ws: zip(*map(finite, ws), strict=True)
    for flags in run(torch.tensor([0, 1])):
        assert [bool(flag) for flag in flags] == [True, False]


def test_nothing_but_weight_zero_stays_of_weight_zero():
    merged = part(1.0, 0).merge(part(2.0, 0))
    assert int(merged.weight) == 0 and merged.mean["w"].isfinite().all()


def test_a_parameter_that_one_part_reaches_is_zero_in_the_others():
    merged = part(2.0, 1, "w").merge(part(4.0, 3, "b"))
    assert sorted(merged.mean) == ["b", "w"]
    assert merged.mean["w"].tolist() == [0.5, 1.0] and merged.mean["b"].tolist() == [3.0, 6.0]


def test_there_must_be_a_part():
    with pytest.raises(ValueError, match="no part"):
        fl.Grads.fold([])


def test_finite_only_if_both_are():
    bad = part(1.0, 1).replace(finite=torch.tensor(False))
    assert not part(1.0, 1).merge(bad).finite and not bad.merge(part(1.0, 1)).finite
    assert part(1.0, 1).merge(part(1.0, 1)).finite


@pytest.mark.parametrize("how", ["plain", "accumulated", "amp"])
def test_what_is_written_into_a_result_does_not_change_a_later_call(how):
    loss = lambda model, x: model(x).square().mean()  # noqa: E731
    parts = {"plain": [], "accumulated": [fl.accumulate(2)], "amp": [fl.amp("bf16")]}
    stage = fl.pipe(loss, fl.grad, *parts[how])
    step = fl.pipe(loss, fl.grad, *parts[how], fl.update(fl.optim.adamw(0.1)), fl.ema(0.9))
    state, x = step.init(torch.nn.Linear(2, 1)), torch.ones(4, 2)
    expected = fl.tree_map(torch.clone, (stage(state, x), step(state, x)))
    (_, grads), (_, metrics) = stage(state, x), step(state, x)
    for leaf in fl.tree_leaves((grads, metrics)):
        leaf.logical_not_() if leaf.dtype == torch.bool else leaf.mul_(2).add_(1)
    assert fl.tree_equal(expected, (stage(state, x), step(state, x)))


def test_replace_takes_a_dict():
    grads = fl.Grads(Tensors({"w": torch.tensor(1.0)}), torch.tensor(1), torch.tensor(True), {})
    new = grads.replace(mean={"w": torch.tensor(2.0)})
    assert new.mean == Tensors({"w": torch.tensor(2.0)})
    with pytest.raises(TypeError, match=r"no field total; it has: mean, weight"):
        grads.replace(total=1)
