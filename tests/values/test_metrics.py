"""Metrics are monoids."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fnloop as fl

EXAMPLES = {
    "mean": [
        fl.Mean(torch.tensor(3.0), 2),
        fl.Mean(torch.tensor(1.0), 1),
        fl.Mean(torch.tensor(-4.0), 5),
    ],
    "vector mean": [fl.Mean(torch.ones(3) * i, torch.tensor(float(i))) for i in (1, 2, 3)],
    "sum": [fl.Sum(1.0), fl.Sum(2.0), fl.Sum(4.0)],
    "min": [fl.Min(torch.tensor(2.0)), fl.Min(torch.tensor(-1.0)), fl.Min(torch.tensor(5.0))],
    "max": [fl.Max(1.0), fl.Max(7.0), fl.Max(2.0)],
    "last": [fl.Last(0.1), fl.Last(0.2), fl.Last(0.3)],
}


def close(a, b):
    return torch.allclose(torch.as_tensor(a.value()).double(), torch.as_tensor(b.value()).double())


@pytest.mark.lightning("L10")
@pytest.mark.parametrize("parts", EXAMPLES.values(), ids=EXAMPLES)
def test_merging_is_associative_and_has_an_identity(parts):
    a, b, c = parts
    assert close(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert close(a.merge(a.empty()), a) and close(a.empty().merge(a), a)


def test_ten_thousand_small_losses_are_not_rounded_away():
    part = fl.Mean(torch.tensor(0.1), 1)
    merged = fl.metrics.merge({"loss": part} for _ in range(100_000))
    assert float(merged["loss"].total) == pytest.approx(
        100_000 * float(torch.tensor(0.1)), rel=1e-12
    )


def test_extremes_show_nan():
    assert math.isnan(float(fl.Max(1.0).merge(fl.Max(math.nan))))
    assert math.isnan(float(fl.Min(torch.tensor(math.nan)).merge(fl.Min(torch.tensor(1.0)))))


@pytest.mark.lightning("L11")
def test_merge_is_over_the_union_of_names():
    merged = fl.metrics.merge([{"a": fl.Sum(1.0)}, {"b": fl.Sum(2.0)}, {"a": fl.Sum(3.0)}])
    assert fl.metrics.numbers(merged) == {"a": 4, "b": 2}


def test_a_stop_that_was_asked_for_stays():
    no, yes = fl.stop(False, "no"), fl.stop(torch.tensor(True), "yes")
    assert no.merge(yes).reason == yes.merge(no).reason == "yes"
    assert fl.metrics.numbers({"stop": yes}) == {}


def test_a_metric_of_ones_own():
    @fl.tree
    class Range(fl.metrics.Metric):
        low: torch.Tensor
        high: torch.Tensor

        def merge(self, other):
            return Range(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))

        def value(self):
            return {"low": self.low, "high": self.high}

    a, b = Range(torch.tensor(1.0), torch.tensor(2.0)), Range(torch.tensor(0.0), torch.tensor(1.0))
    assert fl.metrics.numbers({"range": a.merge(b)}) == {"range/low": 0, "range/high": 2}


def test_nothing_to_average():
    assert math.isnan(float(fl.Mean(0.0, 0)))


KINDS = {
    "bool": torch.tensor([True, False]),
    "uint8": torch.tensor([200, 100], dtype=torch.uint8),
    "int8": torch.tensor([-100, 100], dtype=torch.int8),
    "int32": torch.tensor([2**31 - 1, 2**31 - 2], dtype=torch.int32),
    "int64": torch.tensor([2**60 + 1, 2**60]),
    "float16": torch.tensor([60000.0, 60000.0], dtype=torch.float16),
    "bfloat16": torch.tensor([256.0, 1.0], dtype=torch.bfloat16),
    "float32": torch.tensor([2.0**24, 1.0]),
    "float64": torch.tensor([2.0**53, -1.0], dtype=torch.float64),
}


def plain(value):
    return value.item() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("form", ["tensor", "python", "numpy"])
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_number_against_python(name, form):
    pair = KINDS[name]
    if form == "numpy" and name == "bfloat16":
        return
    of = {
        "tensor": lambda x: x,
        "python": lambda x: x.item(),
        "numpy": lambda x: x.numpy()[()],
    }[form]
    a, b = [of(x) for x in pair.unbind()]
    x, y = pair.tolist()
    assert plain(fl.Sum(a).merge(fl.Sum(b)).value()) == x + y
    assert plain(fl.Max(a).merge(fl.Max(b)).value()) == max(x, y)
    assert plain(fl.Min(a).merge(fl.Min(b)).value()) == min(x, y)
    assert plain(fl.Mean(a, 2).merge(fl.Mean(b, 2)).value()) == (x + y) / 4
    assert plain(fl.Last(a).merge(fl.Last(b)).value()) == y
    for kind in (fl.Sum, fl.Max, fl.Min):
        assert plain(kind(a).merge(kind(a).empty()).value()) == x
        assert plain(kind(a).empty().merge(kind(a)).value()) == x


@pytest.mark.parametrize("name", ["bool", "uint8", "int32", "float16", "float32"])
@pytest.mark.parametrize("merge", [fl.metrics.merge, fl.values.merging.merge_all])
def test_merging_many_against_python(name, merge):
    many = KINDS[name].repeat(500)
    parts = [{"sum": fl.Sum(x), "mean": fl.Mean(x, 1), "max": fl.Max(x)} for x in many.unbind()]
    merged, exact = merge(parts), many.tolist()
    assert plain(merged["sum"].value()) == sum(exact)
    assert plain(merged["mean"].value()) == sum(exact) / 1000
    assert plain(merged["max"].value()) == max(exact)


def test_a_mean_of_integers_is_divided_in_float64():
    for total in (torch.tensor(67128463 * 3), 67128463 * 3):
        assert float(fl.Mean(total, torch.tensor(3)).value()) == 67128463
    assert fl.Mean(torch.tensor(1), torch.tensor(3)).value() == 1 / 3
    assert float(fl.Mean(1, torch.tensor(3))) == 1 / 3


def test_what_cannot_be_merged_says_which():
    for a, b, message in [
        (fl.Sum(1.0), fl.Mean(1.0, 2), "'a' is Sum.* in one part and Mean"),
        (fl.Mean(1.0, 2), fl.Sum(1.0), "'a' is Mean.* in one part and Sum"),
        (fl.Last(1.0), fl.Sum(1.0), "'a' is Last"),
        (fl.Sum(torch.ones(2)), fl.Sum(torch.ones(3)), r"shapes.*f32\[2\] and f32\[3\]|f64"),
        (fl.Sum(torch.ones(2)), fl.Sum(torch.ones(())), "different shapes"),
        (fl.Mean(torch.ones(2), 1), fl.Mean(torch.ones(3), 1), "different shapes"),
    ]:
        for how in (fl.metrics.merge, fl.values.merging.merge_all):
            with pytest.raises((TypeError, ValueError), match=message) as caught:
                how([{"a": a}, {"a": b}])
            assert "'a'" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


def test_comparing_and_formatting():
    loss = fl.Mean(torch.tensor(3.0), 2)
    assert f"{loss:.3f}" == "1.500" and f"{loss:8.1e}" == " 1.5e+00" and f"{loss}" == repr(loss)
    assert loss < 2 and loss <= 1.5 and loss > 1 and loss >= 1.5
    assert 2 > loss and 1 <= loss and 1.5 == loss  # noqa: SIM300
    assert loss == 1.5 and loss != 2 and loss == np.float64(1.5)
    assert loss == fl.Mean(torch.tensor(3.0), 2) and loss != fl.Mean(torch.tensor(6.0), 4)
    assert fl.Mean(math.nan, 1) != math.nan
    assert sorted([loss, fl.Sum(1)]) == [fl.Sum(1), loss] and max(loss, fl.Sum(1)) is loss
    assert int(fl.Sum(2**60 + 1)) == 2**60 + 1 and len({fl.Sum(1), fl.Sum(1)}) == 1
    for f in (float, int, lambda m: f"{m:.2f}", lambda m: m < 1):
        with pytest.raises(TypeError, match=r"f32\[2\], which is not one number"):
            f(fl.Sum(torch.ones(2)))


@fl.tree
class Several(fl.metrics.Metric):
    hits: torch.Tensor
    n: torch.Tensor

    def merge(self, other):
        return Several(self.hits + other.hits, self.n + other.n)

    def value(self):
        rates = self.hits.double() / self.n
        return {"each": rates, "worst": rates.min(), "most": [rates.max(), {"at": rates.argmax()}]}


def test_a_metric_of_several_values_has_a_name_for_each():
    metric = Several(torch.tensor([1, 3, 2]), torch.tensor(4))
    found = fl.metrics.numbers(
        {"rate": metric, "sum": fl.Sum(np.ones(2)), "one": fl.Sum(torch.ones(1))}
    )
    assert found == {
        "rate/each[0]": 0.25,
        "rate/each[1]": 0.75,
        "rate/each[2]": 0.5,
        "rate/worst": 0.25,
        "rate/most[0]": 0.75,
        "rate/most[1]/at": 1.0,
        "sum[0]": 1.0,
        "sum[1]": 1.0,
        "one": 1.0,
    }
    for name, value in found.items():
        if name != "one":
            got = fl.values.merging.find({"rate": metric, "sum": fl.Sum(np.ones(2))}, name)
            assert float(got) == value
    for name in ("rate/each[3]", "rate/none", "rate/each[x]", "rate/each/0", "rate[0]", "other[0]"):
        assert fl.values.merging.find({"rate": metric}, name) is None
    long = {
        "long": fl.Sum(torch.ones(1001)),
        "matrix": fl.Sum(torch.ones(2, 2)),
        "text": fl.Last("a"),
    }
    assert fl.metrics.numbers(long) == {}


def test_a_metric_shows_its_value():
    table = fl.Sum(torch.ones(20, 20))
    shown = {
        "loss": fl.Mean(torch.tensor(0.123456), 3),
        "steps": fl.Sum(torch.tensor(7)),
        "lr": fl.Last(1e-5),
        "recall": fl.Last(torch.tensor([0.5, 0.25])),
        "table": table,
        "done": fl.stop(torch.tensor(False), "enough"),
    }
    assert repr(shown) == (
        "{'loss': Mean(0.04115), 'steps': Sum(7), 'lr': Last(1e-05), "
        "'recall': Last([0.5, 0.25]), 'table': Sum(f32[20,20]), 'done': Stop(False)}"
    )
    assert str(shown["loss"]) == f"{shown['loss']}" == "Mean(0.04115)"


def test_where_there_is_no_value_to_look_at_a_metric_shows_its_fields():
    texts = []

    def f(x):
        texts.append(repr(fl.Mean(x, 2)))
        return x

    torch.func.vmap(f)(torch.ones(3))
    torch.func.grad(f)(torch.ones(()))
    texts.append(repr(fl.Mean(torch.ones((), device="meta"), 2)))
    with torch._subclasses.FakeTensorMode():
        texts.append(repr(fl.Mean(torch.ones(()), 2)))
    assert texts == ["Mean(total=f32[], weight=2)"] * 4


def test_printing_metrics_in_a_compiled_step_records_nothing():
    texts = []

    def told(state, batch):
        state, metrics = STEP(state, batch)
        texts.append(repr(metrics))
        return state, metrics

    STEP = fl.pipe(lambda m, b: m(b).mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = STEP.init(torch.nn.Linear(2, 1))
    fl.compile(told, backend="aot_eager")(state, torch.ones(3, 2))
    assert "'loss': Mean(total=f64[], weight=i64[])" in texts[0]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_metric_class_without_fl_tree_is_told_so(compiled):
    class Fields(fl.metrics.Metric):
        n: torch.Tensor

    class Own(fl.metrics.Metric):
        def __init__(self, n):
            self.n = n

        def merge(self, other):
            return Own(self.n + other.n)

        def value(self):
            return self.n

    with pytest.raises(TypeError, match=r"class Fields is no tree.* as n\. Write @fl\.tree"):
        Fields(torch.ones(()))
    step = fl.pipe(
        lambda m, b: (m(b).mean(), {"own": Own(torch.ones(()))}),
        fl.grad,
        fl.update(fl.optim.sgd(0.1)),
    )
    run = fl.compile(step, backend="aot_eager") if compiled else step
    with pytest.raises(TypeError, match=r"class Own is no tree\. .*in place of __init__"):
        run(step.init(torch.nn.Linear(2, 1)), torch.ones(3, 2))
