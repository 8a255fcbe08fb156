"""A character GPT."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fnloop as fl
from tests.distributed.curves import draw, losses

TINY = {"batch_size": 4, "block": 16, "layers": 2, "heads": 2, "width": 32}


@pytest.fixture
def char_gpt(example):
    return example("char_gpt")


@pytest.fixture
def alphabet(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcdefghijklmnopqrstuvwxyz\n" * 40, encoding="utf-8")
    return path


def test_a_block_is_a_transformer_layer(char_gpt):
    ours = char_gpt.Block(width=32, heads=4)
    theirs = nn.TransformerEncoderLayer(
        32, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, bias=False
    )
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": ours.qkv.weight,
            "self_attn.out_proj.weight": ours.mix.weight,
            "linear1.weight": ours.up.weight,
            "linear2.weight": ours.down.weight,
            "norm1.weight": ours.norm1.weight,
            "norm2.weight": ours.norm2.weight,
        }
    )
    x = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0))
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    torch.testing.assert_close(ours(x), theirs(x, src_mask=mask, is_causal=True))


def test_it_has_the_published_size_and_begins_knowing_nothing(char_gpt):
    model = char_gpt.GPT(characters=65, block=64, layers=4, heads=4, width=128)
    matrices = 4 * 12 * 128**2
    assert sum(p.numel() for p in model.parameters()) == matrices + (65 + 64) * 128 + 9 * 128
    window = torch.randint(65, (12, 65), generator=torch.Generator().manual_seed(0))
    assert abs(char_gpt.loss(model, window).item() - math.log(65)) < 0.1


def test_windows_are_pieces_of_their_part_of_the_text(char_gpt):
    data = char_gpt.windows(torch.arange(1000), block=8, batch_size=6, seed=0)
    batch = next(iter(data.train))
    assert batch.shape == (6, 9)
    assert torch.equal(batch, batch[:, :1] + torch.arange(9))
    assert max(int(window.max()) for window in data.train) == 899
    held_out = list(data.validate)
    assert len(held_out) == 100
    assert (min(int(w.min()) for w in held_out), max(int(w.max()) for w in held_out)) == (900, 999)


def test_it_learns_the_alphabet(char_gpt, alphabet, tmp_path):
    r = char_gpt.recipe(alphabet, steps=150, lr=1e-2, warmup=10, folder=tmp_path / "run", **TINY)
    state, history = fl.fit(
        r.step, r.step.init(r.model, seed=r.seed), r.data, steps=r.steps, callbacks=r.callbacks
    )
    # After its first character, all of a window is certain.
    assert fl.evaluate(r.metrics, state, r.data.validate)["loss"] < 0.3 * math.log(27)
    assert history["matrix.adamw.weight_decay"][-1] == pytest.approx(0.1)
    assert history["scale.adamw.weight_decay"][-1] == 0.0
    assert history["matrix.adamw.lr"][-1] == pytest.approx(1e-3, rel=0.05)
    last = (tmp_path / "run" / "samples.txt").read_text(encoding="utf-8").split("--- ")[-1]
    assert last.startswith("step 150\n") and "abcdefghijklmnopqrstuvwxyz\n" in last


def test_samples_do_not_disturb_the_training(char_gpt, alphabet, tmp_path):
    r = char_gpt.recipe(alphabet, steps=3, folder=tmp_path / "run", **TINY)
    state = r.step.init(r.model, seed=r.seed)
    with_effects, _ = fl.fit(r.step, state, r.data, steps=3, callbacks=r.callbacks)
    for bare, _ in fl.run(r.step, state, r.data.train, steps=3):  # noqa: B007
        pass
    assert fl.tree_equal(with_effects.params, bare.params)


@pytest.mark.lightning("I7")
def test_the_command_line(char_gpt, alphabet, tmp_path, monkeypatch):
    monkeypatch.setattr(fl.History, "plot", lambda *arguments: None)  # a second
    flags = [f"--{name}={value}" for name, value in TINY.items()]
    folder = tmp_path / "run"
    command = ["fit", char_gpt.__file__, f"--text={alphabet}", f"--folder={folder}", *flags]
    assert char_gpt.main([*command, "--steps=8"]) == 0
    assert (folder / "samples.txt").exists() and (folder / "config.yaml").exists()


@pytest.fixture
def flags(alphabet):
    return [f"--text={alphabet}", *[f"--{name}={value}" for name, value in TINY.items()]]


def test_two_processes_by_torchrun_have_the_curve_of_one(flags, tmp_path):
    flags = [*flags, "--batch_size=5", "--steps=20", "--lr=0.01", "--warmup=4"]
    one = losses(tmp_path / "one", 1, *flags)
    assert list(one) == list(range(1, 21)) and one[20] < 0.8 * one[1]
    for plan in ("replicate", "zero2"):
        two = losses(tmp_path / plan, 2, *flags, f"--plan={plan}")
        assert two == pytest.approx(one, rel=1e-5)
        here, there = [(tmp_path / run / "samples.txt").read_text() for run in ("one", plan)]
        assert here == there
    above, below = draw(one, two).axes
    assert len(above.lines) == 2 and max(below.lines[0].get_ydata()) < 1e-4


def test_without_a_text_it_reads_the_python_manual(char_gpt):
    text = char_gpt.read(None)
    assert len(text) > 400_000 and '"with" statement' in text
