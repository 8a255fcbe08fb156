from __future__ import annotations

import torch

from fnloop.stages.select import look, negated, select
from fnloop.values.metrics import Last, Sum

CPU = torch.device("cpu")
NEW = {"a": torch.tensor(1.0), "b": {"c": torch.tensor([1, 2])}, "only": torch.tensor(5.0)}
OLD = {"a": torch.tensor(3.0), "b": {"c": torch.tensor([4, 5])}}


def test_what_the_old_one_does_not_have_stays():
    for no in (False, torch.tensor(False)):
        chosen = select(no, NEW, OLD)
        assert list(chosen) == ["a", "b", "only"]
        assert float(chosen["a"]) == 3 and chosen["b"]["c"].tolist() == [4, 5]
        assert chosen["only"] is NEW["only"]
    chosen = select(torch.tensor(True), NEW, OLD)
    assert float(chosen["a"]) == 1 and chosen["b"]["c"].dtype == torch.int64
    assert select(True, NEW, OLD) is NEW


def test_metrics_with_plain_numbers_become_tensors_in_double_precision():
    chosen = select(torch.tensor(False), Sum(1e-9), Sum(1 / 3))
    assert chosen.total.dtype == torch.float64 and float(chosen) == 1 / 3
    last = Last(0.1)
    assert select(torch.tensor(False), last, last.empty()) is last


def test_it_looks_only_where_values_may_be_looked_at():
    assert look(torch.tensor(2.0), CPU) is True and look(0, CPU) is False
    assert negated(True) is False

    def traced(x):
        flag = look(x, CPU)
        assert isinstance(flag, torch.Tensor) and isinstance(look(1, CPU), torch.Tensor)
        return select(negated(flag), torch.ones(()), torch.zeros(()))

    assert torch.func.vmap(traced)(torch.tensor([0.0, 2.0])).tolist() == [1, 0]
