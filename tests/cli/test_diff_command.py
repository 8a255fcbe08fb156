from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from fnloop.cli.diff_command import difference, leaves_table


def cells(out):
    return {line.split()[0]: line.split() for line in out.splitlines() if line}


def test_diff_of_a_checkpoint_with_itself(trained, cli):
    code, out, _ = cli("diff", trained, trained / "step-00000015")
    assert code == 0 and "the same, to the bit" in out


def test_diff_names_each_leaf_that_differs_and_the_configuration(recipe, cli):
    cli("fit", recipe)
    cli("fit", recipe, "--lr", "0.02", "--folder", "runs/slow")
    code, out, _ = cli("diff", "runs/line", "runs/slow")
    assert code == 0
    assert cells(out)["lr"] == ["lr", "0.05", "0.02"]
    assert {"params/weight", "slots/ema/bias"} <= cells(out).keys()
    assert "cursor" not in cells(out) and "key" not in cells(out)


def test_norms_are_those_of_the_leaves(trained, cli):
    first, last = (trained / f"step-000000{count}" for count in ("05", "15"))
    out = cli("diff", first, last)[1]
    a, b = (load_file(path / "state.safetensors") for path in (first, last))
    row = cells(out)["params/weight"]
    x, y = a["params/weight"], b["params/weight"]
    expected = [x.norm(), y.norm(), (y - x).norm(), (y - x).abs().max(), (y - x).norm() / x.norm()]
    assert row[1:3] == ["f32[1,2]", "f32[1,2]"]
    assert [float(cell) for cell in row[3:8]] == pytest.approx(list(map(float, expected)), rel=0.01)
    flat = [torch.cat([t["params/bias"], t["params/weight"][0]]) for t in (a, b)]
    relative = float((flat[1] - flat[0]).norm() / flat[0].norm())
    summary = out.splitlines()[-1].split()
    differ = sum(not torch.equal(a[name], b[name]) for name in a)
    assert summary[:5] == [str(differ), "of", str(len(a)), "leaves", "differ;"]
    assert float(summary[8]) == pytest.approx(relative, rel=0.01)


def test_groups_come_as_in_a_state_with_a_line_between_them():
    a = {name: torch.ones(2) for name in ("slots/ema/w", "buffers/m", "params/w", "step")}
    text = leaves_table(a, {name: 2 * leaf for name, leaf in a.items()})
    names = [line.split()[0] if line else "" for line in text.splitlines()[1:-2]]
    assert names == ["step", "", "params/w", "", "buffers/m", "", "slots/ema/w"]


def test_values_that_are_not_finite_are_counted_and_left_out_of_norms():
    a, b = torch.tensor([3.0, 4.0, 1.0]), torch.tensor([3.0, 8.0, torch.nan])
    found = difference(a, b)
    assert found.norms == pytest.approx((math.sqrt(26), math.sqrt(73), 4.0))
    assert found.largest == 4.0 and found.remark == "1 of 3 not finite in b"


@pytest.mark.parametrize(
    ("a", "b", "remark"),
    [
        (torch.ones(2), torch.ones(3), "shape"),
        (torch.ones(2), torch.ones(2, dtype=torch.float64), "dtype"),
        (torch.tensor([0.0]), torch.tensor([-0.0]), "bits only (nan or -0.0)"),
        (torch.ones(0, 2), torch.ones(0, 3), "shape"),
    ],
)
def test_what_numbers_do_not_say_is_said(a, b, remark):
    assert difference(a, b).remark == remark


def test_leaves_of_one_side_only():
    text = leaves_table({"params/a": torch.ones(4)}, {"params/b": torch.ones(9)})
    assert cells(text)["params/a"] == ["params/a", "f32[4]", "-", "2", *"----", "only", "in", "a"]
    assert cells(text)["params/b"] == [
        "params/b",
        "-",
        "f32[9]",
        "-",
        "3",
        *"---",
        "only",
        "in",
        "b",
    ]
    assert "2 of 2 leaves differ" in text


def test_a_few_whole_numbers_are_shown_themselves():
    a = {"cursor": torch.tensor([0, 10, 1]), "params/on": torch.tensor(True)}
    b = {"cursor": torch.tensor([0, 20, 2]), "params/on": torch.tensor(False)}
    text = leaves_table(a, b)
    assert "[0, 10, 1] and [0, 20, 2]" in text and "True and False" in text


def test_complex_leaves_have_norms_too():
    found = difference(torch.tensor([3j]), torch.tensor([4.0 + 0j]))
    assert found.norms == pytest.approx((3.0, 4.0, 5.0)) and found.largest == 5.0


def test_memory_alone_may_differ():
    text = leaves_table(
        {"params/a": torch.ones(1), "step": torch.tensor(1)},
        {"params/a": torch.ones(1), "step": torch.tensor(2)},
    )
    assert "1 of 2 leaves differ; no parameter does" in text
