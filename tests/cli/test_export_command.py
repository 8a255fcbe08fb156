from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

RECIPE = '''
import torch
from torch import nn
import fnloop as fl


class Tied(nn.Module):
    """An embedding that is also the last layer, a buffer that is saved and one that is not."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 6, bias=False)
        self.last.weight = self.embed.weight
        self.register_buffer("mask", torch.zeros(2), persistent=False)

    def forward(self, tokens):
        return self.last(self.norm(self.embed(tokens)))


def loss(model, tokens):
    return nn.functional.cross_entropy(model(tokens), tokens)


def recipe(folder: str = "runs/tied") -> fl.Recipe:
    data = fl.Batches(torch.arange(60) % 6, batch_size=12)
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.1)), fl.ema(0.9))
    return fl.Recipe(step, Tied, data, [fl.checkpoint(folder)], epochs=2, folder=folder)
'''


def tied():
    space: dict = {}
    exec(compile(RECIPE, "tied.py", "exec"), space)
    return space["Tied"]()


@pytest.fixture
def run(tmp_path, cli):
    (tmp_path / "tied.py").write_text(RECIPE)
    code, _, err = cli("fit", "tied.py")
    assert code == 0, err
    return tmp_path / "runs" / "tied"


def saved(run):
    return load_file(run / "step-00000010" / "state.safetensors")


@pytest.mark.lightning("H13")
@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors"])
@pytest.mark.parametrize("source", ["runs/tied", "runs/tied/step-00000010"])
def test_the_users_module_loads_what_was_exported(name, source, run, cli):
    code, out, err = cli("export", source, "--output", name)
    assert code == 0, err
    assert "step-00000010" in err and "7 tensors" in out
    weights = load_file(name) if name.endswith("s") else torch.load(name, weights_only=True)
    model = tied()
    model.load_state_dict(weights)  # strict: every name, tied ones twice
    assert model.last.weight is model.embed.weight
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        part = "params" if isinstance(tensor, nn.Parameter) else "buffers"
        assert torch.equal(tensor, saved(run)[f"{part}/{name}"]), name


def test_the_average_is_exported_in_place_of_the_parameters(run, cli):
    code, _, err = cli("export", run, "--output", "w.safetensors", "--params", "ema")
    assert code == 0, err
    weights = load_file("w.safetensors")
    assert torch.equal(weights["last.weight"], saved(run)["slots/ema/embed.weight"])
    assert not torch.equal(weights["last.weight"], saved(run)["params/embed.weight"])
    # Its statistics are its own: each of the six tokens comes equally often.
    mean = weights["last.weight"].mean(0)
    torch.testing.assert_close(weights["norm.running_mean"], mean)
    assert not torch.allclose(saved(run)["buffers/norm.running_mean"], mean)


def test_a_dtype_is_that_of_floating_point_tensors(run, cli):
    assert cli("export", run, "--output", "w.pt", "--dtype", "bf16")[0] == 0
    weights = torch.load("w.pt", weights_only=True)
    assert weights["embed.weight"].dtype == torch.bfloat16
    assert weights["norm.num_batches_tracked"].dtype == torch.int64
    assert torch.equal(weights["embed.weight"], saved(run)["params/embed.weight"].bfloat16())


def test_the_file_says_where_it_is_from(run, cli):
    cli("export", run, "--output", "w.safetensors", "--params", "ema")
    with safe_open("w.safetensors", "pt") as file:
        about = file.metadata()
    assert about["source"].endswith("step-00000010") and about["format"] == "pt"
    assert about["params"] == "ema" and about["step"] == "10"


def test_without_the_recipe_what_is_there_is_exported_and_that_is_said(run, cli, tmp_path):
    (tmp_path / "tied.py").unlink()
    code, _, err = cli("export", run / "step-00000010", "--output", "w.safetensors")
    assert code == 0 and "without the recipe, a tied parameter has its first name only" in err
    weights = load_file("w.safetensors")
    assert "last.weight" not in weights and torch.equal(
        weights["embed.weight"], saved(run)["params/embed.weight"]
    )
    missing, unexpected = tied().load_state_dict(weights, strict=False)
    assert missing == ["last.weight"] and unexpected == ["mask"]
    code, _, err = cli("export", run, "--output", "e.safetensors", "--params", "ema")
    assert code == 0, err
    ema = saved(run)["slots/ema/embed.weight"]
    assert torch.equal(load_file("e.safetensors")["embed.weight"], ema)
    assert "statistics of BatchNorm are those of the live parameters" in err


def test_a_bare_checkpoint_needs_no_run(run, cli, tmp_path):
    (run / "config.yaml").unlink()
    assert cli("export", run, "--output", "w.pt")[0] == 0
    assert "embed.weight" in torch.load("w.pt", weights_only=True)


def test_a_file_is_not_overwritten_but_by_force(run, cli, tmp_path):
    (tmp_path / "w.pt").write_text("mine")
    code, _, err = cli("export", run, "--output", "w.pt")
    assert code == 2 and "exists already" in err and "--force" in err
    assert (tmp_path / "w.pt").read_text() == "mine"
    assert cli("export", run, "--output", "w.pt", "--force")[0] == 0
    assert "embed.weight" in torch.load("w.pt", weights_only=True)


def test_a_failed_export_leaves_nothing_and_keeps_what_was_there(run, cli, tmp_path, monkeypatch):
    (tmp_path / "w.pt").write_text("mine")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, _, err = cli("export", run, "--output", "w.pt", "--force")
    assert code == 1 and "No space left" in err
    assert (tmp_path / "w.pt").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if ".tmp-" in path.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/tied", "--output", "w.bin"], "expected a file called .safetensors, .pt, .pth"),
        (["runs/tied", "--output", "w.pt", "--dtype", "int8"], "expected fp32, bf16, fp16"),
        (["runs/tied", "--output", "w.pt", "--params", "swa"], "no slot of that name"),
        (["runs/none", "--output", "w.pt"], "There is no runs/none"),
        (["runs/tied"], "--output"),
    ],
)
def test_wrong_arguments(arguments, message, run, cli):
    code, _, err = cli("export", *arguments)
    assert code == 2 and message in err
