"""MNIST-1D: the data of the paper, and a small run of each model."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")


@pytest.fixture
def example_1d(example):
    return example("mnist1d")


def test_the_data_are_the_published_ones(example_1d):
    """Numbers of the authors' package, mnist1d 0.0.2, which makes them with float64."""
    data = example_1d.mnist1d()
    (x, digits), (others, _) = data.train, data.test
    assert x.shape == (4000, 40) and others.shape == (1000, 40)
    assert digits[:10].tolist() == [2, 6, 4, 5, 6, 6, 6, 0, 3, 1]
    first = [-0.33200567, -0.47191037, -0.77869708, -1.00974083, -0.88235257]
    third = [-0.01930303, 0.07863308, 0.62488909, 0.61913384, 0.35648702]
    torch.testing.assert_close(x[[0, 2], :5], torch.tensor([first, third]), rtol=0, atol=1e-6)
    assert float(x.double().sum()) == pytest.approx(-51.787468, abs=1e-3)
    assert float(x.double().abs().sum()) == pytest.approx(118338.29511, abs=1e-2)


def test_models_have_the_published_sizes(example_1d):
    networks = {name: model.network() for name, model in example_1d.MODELS.items()}
    assert all(model(torch.ones(3, 40)).shape == (3, 10) for model in networks.values())
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in networks.items()}
    assert sizes == {"logistic": 410, "mlp": 15210, "cnn": 5210, "gru": 5134}


def test_a_few_steps_of_some_seeds_are_one_run(example_1d, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(example_1d.fl, "compile", lambda step, donate: step)
    options = ["--models", "logistic", "cnn", "--seeds", "2", "--steps", "60"]
    found = example_1d.main([*options, "--plot", str(tmp_path / "table.png")])
    assert found["cnn"].mean > 15  # of 10 by chance
    assert len(found["cnn"].curves) == 2 and found["cnn"].curves[0][0][-1] == 60
    assert (tmp_path / "table.png").stat().st_size > 1000
    assert capsys.readouterr().out.count("±") == 2
