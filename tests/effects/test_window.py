import json
import math

import torch

from fnloop.effects.window import from_json, to_json
from fnloop.metrics.confusion_matrix import confusion
from fnloop.trees.equal import tree_equal
from fnloop.values.merging import merge_all
from fnloop.values.metrics import Last, Mean, Min, Stop, Sum


def parts(n=7):
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(4, 3, generator=generator) for _ in range(n)]
    return [
        {
            "loss": Mean(torch.rand((), generator=generator, dtype=torch.float64), torch.tensor(4)),
            "plain": Mean(0.1 * i, 3),
            "skipped": Sum(0.0),
            "lr": Last(math.nan if i == 2 else 0.1 / 3),
            "least": Min(torch.rand((), generator=generator)),
            "matrix": confusion(score, torch.tensor([0, 1, 2, 0]), classes=3),
        }
        for i, score in enumerate(scores)
    ]


def test_what_comes_back_is_merged_to_the_same_bits():
    given = parts()
    for k in range(1, len(given)):
        held = json.loads(json.dumps(to_json(given[:k]), allow_nan=False))
        back = from_json(held, given[k])
        assert tree_equal(back, given[:k])
        assert tree_equal(merge_all([*back, *given[k:]]), merge_all(given))


def test_a_metric_that_comes_now_and_then():
    given = [{"a": Last(1.0)}, {"a": Last(2.0), "b": Mean(1.0, 2)}]
    back = from_json(to_json(given), {"a": Last(0.0), "b": Mean(0.0, 1)})
    assert tree_equal(merge_all(back), merge_all(given))


def test_what_is_not_there_any_more_or_another_kind_is_left_out():
    held = to_json([{"a": Mean(1.0, 2), "b": Last(3.0), "c": Sum(1.0)}])
    back = from_json(held, {"a": Sum(1.0), "c": Sum(0.0)})
    assert tree_equal(back, [{"c": Sum(1.0)}])


def test_a_wish_to_stop_and_what_json_lacks_are_left_out():
    given = [{"stop": Stop(True, "enough"), "odd": Last(object()), "loss": Mean(1.0, 2)}]
    assert list(to_json(given)) == ["loss"]
