"""Classes that are chosen for flags, on the command line and in configurations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fnloop.cli.app import main
from fnloop.cli.yaml_dialect import load

RECIPE = '''
from collections.abc import Callable

import torch
from torch import nn

import fnloop as fl


class Net(nn.Module):
    """A perceptron.

    Args:
        width: Hidden units.
    """

    def __init__(self, width: int = 8, drop: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Dropout(drop), nn.Linear(width, 2))

    def forward(self, x):
        return self.layers(x)


class Twice(nn.Module):
    def __init__(self, inner: nn.Module, times: int):
        super().__init__()


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def recipe(
    model: Callable[[], nn.Module] = Net,
    optimizer: fl.optim.Optimizer = fl.optim.sgd(0.1, momentum=0.9),
    callbacks: list[fl.base.Callback] | None = None,
    rate: float | fl.schedules.Schedule = 1.0,
    rows: int = 8,
    folder: str = "runs/a",
) -> fl.Recipe:
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    data = fl.Batches((x, (x[:, 0] > 0).long()), rows)
    optimizer = fl.optim.chain(fl.optim.scale_by(rate), optimizer)
    step = fl.pipe(loss, fl.grad, fl.update(optimizer))
    others = [*(callbacks or []), fl.checkpoint(folder)]
    return fl.Recipe(step, model, data, others, epochs=2, folder=folder)
'''

BESIDE = """
from torch import nn


class Deep(nn.Sequential):
    def __init__(self, width: int, layers: int = 2):
        middle = [nn.Linear(width, width) for _ in range(layers)]
        super().__init__(nn.Linear(2, width), *middle, nn.Linear(width, 2))
"""

CONFIG = """
recipe: r.py
model:
  class_path: Net
  init_args: {width: 16}
optimizer:
  class_path: fl.optim.adamw
  init_args:
    lr: 0.1
    weight_decay: 0.5
rate:
  class_path: fl.schedules.cosine
  init_args: {peak: 1.0, steps: 8}
callbacks:
- class_path: fl.early_stopping
  init_args: {monitor: loss, patience: 1}
"""


@pytest.fixture(autouse=True)
def files():
    Path("r.py").write_text(RECIPE)
    Path("beside.py").write_text(BESIDE)
    Path("c.yaml").write_text(CONFIG)


def printed(capsys, *arguments):
    """The configuration that the arguments of ``fit`` make."""
    assert main(["fit", *arguments, "--print-config"]) == 0, capsys.readouterr().err
    return load(capsys.readouterr().out)


def refused(capsys, *arguments):
    """The error."""
    assert main(["fit", *arguments, "--print-config"]) == 2
    return capsys.readouterr().err


@pytest.mark.lightning("I3")
@pytest.mark.parametrize("name", ["Net", "r.Net"])
def test_a_class_of_the_recipe_goes_by_its_name(capsys, name):
    found = printed(capsys, "r.py", "--model", name, "--model.width", "4")
    assert found["model"] == {"class_path": "Net", "init_args": {"width": 4, "drop": 0.0}}


def test_arguments_of_the_default_class_alone(capsys):
    found = printed(capsys, "r.py", "--model.width=4", "--optimizer.lr=0.5")
    assert found["model"] == {"class_path": "Net", "init_args": {"width": 4, "drop": 0.0}}
    own = found["optimizer"]["init_args"]
    assert (own["lr"], own["momentum"], own["name"]) == (0.5, 0.9, "sgd")


def test_arguments_of_a_class_are_swept(cli, numbers):
    given = ["r.py", "--model.width", "4", "--rate"]
    code, out, err = cli("sweep", *given, "0.5,1", "--optimizer.lr", "0.05,0.2")
    assert code == 0 and "model=Net(width=4, drop=0.0)" in err, err
    assert "scale_by.factor: 0.5, 1; sgd.lr: 0.05, 0.2" in err
    rows = [line.split() for line in out.splitlines() if re.match(r" +\d", line)]
    found = {(rate, lr): float(loss) for _, rate, lr, loss in rows}
    assert len(found) == 4
    arguments = [*given, "0.5", "--optimizer.lr", "0.2", "--folder", "runs/b"]
    code, out, _ = cli("fit", *arguments)
    assert code == 0 and numbers(out)["train"]["loss"] == pytest.approx(
        found["0.5", "0.2"], rel=1e-3
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "Net,Twice"], "fnloop fit with --model Net and --model Twice, each in a"),
        (["--model.width", "4,8"], "Run by itself: fnloop fit r.py --model.width 8"),
        (["--rate", "0.1,fast"], "'fast' is none. The flag takes int | float."),
        (["--model.widht", "4,8"], "Net has no argument 'widht'. Did you mean 'width'?"),
    ],
)
def test_what_cannot_be_swept(cli, arguments, message):
    code, _, err = cli("sweep", "r.py", *arguments)
    assert code == 2 and message in err


def test_a_class_of_a_module_beside_it(capsys):
    found = printed(capsys, "r.py", "--model", "beside.Deep", "--model.width", "4")
    assert found["model"] == {"class_path": "beside.Deep", "init_args": {"width": 4, "layers": 2}}


@pytest.mark.lightning("I4")
@pytest.mark.parametrize("name", ["fl.optim.adamw", "fnloop.optim.adamw", "adamw"])
def test_another_class_takes_nothing_over_from_the_one_before(capsys, name):
    own = printed(capsys, "r.py", "--optimizer", name)["optimizer"]["init_args"]
    assert (own["lr"], own["weight_decay"], own["name"]) == (1e-3, 0.01, "adamw")
    own = printed(capsys, "--config", "c.yaml", "--optimizer", "lion")["optimizer"]["init_args"]
    assert (own["weight_decay"], own["name"]) == (0.0, "lion")


def test_arguments_of_the_class_in_a_configuration_stay(capsys):
    own = printed(capsys, "--config", "c.yaml", "--optimizer.b1", "0.5")["optimizer"]["init_args"]
    assert (own["b1"], own["weight_decay"], own["lr"]) == (0.5, 0.5, 0.1)
    whole = "{class_path: adamw, init_args: {lr: 2.0}}"
    own = printed(capsys, "--config", "c.yaml", "--optimizer", whole)["optimizer"]["init_args"]
    assert (own["lr"], own["weight_decay"]) == (2.0, 0.5)


def test_a_class_goes_only_where_a_type_allows_it(capsys):
    whole = "{class_path: adamw, init_args: {lr: {class_path: builtins.print}}}"
    assert main(["fit", "r.py", "--optimizer", whole]) == 1
    found = printed(capsys, "--config", "c.yaml", "--rate.peak", "2")["rate"]
    assert found["class_path"].endswith("cosine") and found["init_args"]["peak"] == 2.0
    assert "Schedule" in refused(capsys, "r.py", "--rate", "Net")


def test_configurations_are_put_together(capsys):
    Path("more.yaml").write_text("rows: 4\nmodel: {class_path: Net, init_args: {drop: 0.5}}\n")
    found = printed(capsys, "--config", "c.yaml", "--config", "more.yaml")
    assert found["rows"] == 4
    assert found["model"]["init_args"] == {"width": 16, "drop": 0.5}
    assert found["optimizer"]["class_path"].endswith("adamw")


def test_values_are_linked_by_anchors(capsys):
    Path("linked.yaml").write_text("rows: &n 6\nmodel: {class_path: Net, init_args: {width: *n}}\n")
    found = printed(capsys, "r.py", "--config", "linked.yaml")
    assert found["rows"] == found["model"]["init_args"]["width"] == 6


def test_a_run_goes_on_with_what_was_chosen(capsys):
    assert main(["fit", "--config", "c.yaml", "--rows", "16"]) == 0
    told = capsys.readouterr().err
    assert "model=Net(width=16, drop=0.0)" in told and "patience=1" in told
    written = load(Path("runs/a/config.yaml").read_text())
    assert written["model"] == {"class_path": "Net", "init_args": {"width": 16, "drop": 0.0}}
    assert main(["resume", "runs/a"]) == 0
    assert main(["show", "runs/a"]) == 0
    assert "model=Net(width=16" in capsys.readouterr().out.replace("\n          ", " ")


def test_names_within_the_arguments_of_a_class(capsys):
    whole = "{class_path: Twice, init_args: {inner: nn.Flatten, times: 2}}"
    found = printed(capsys, "r.py", "--model", whole)["model"]["init_args"]
    assert found["inner"]["class_path"] == "torch.nn.Flatten"
    given = ["--model.times", "2", "--model.inner", "Net", "--model", "Twice"]  # in any order
    found = printed(capsys, "r.py", *given, "--model.inner.width", "3")["model"]["init_args"]
    assert found["inner"] == {"class_path": "Net", "init_args": {"width": 3, "drop": 0.0}}


OTHERS = """
import abc
import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Optional, Protocol

import torch

from r import Callable, Net, Twice, fl, nn, recipe as other


class Color(enum.Enum):
    red = 1
    green = 2


@dataclass
class Sizes:
    width: int = 8


class Pair(NamedTuple):
    a: int = 1


class Block(abc.ABC):
    @abc.abstractmethod
    def go(self): ...


class Speaks(Protocol):
    def say(self): ...


class Loud(Block):
    def __init__(self, names: list[str] = ["a"], color: Color = Color.red): pass
    def go(self): pass
    def say(self): pass


def untold(x): return x


def recipe(
    body: Optional[nn.Module] = None,
    parts: list[nn.Module] = (),
    by: dict[str, nn.Module] | None = None,
    made: Callable[[], nn.Module] = lambda: Net(16),
    chain: fl.optim.Optimizer = fl.optim.chain(fl.optim.sgd(0.1)),
    act: Callable[[torch.Tensor], torch.Tensor] = torch.relu,
    kind: type[nn.Module] = nn.ReLU,
    color: Color = Color.red,
    sizes: Sizes = Sizes(),
    widths: list[int] = [1],
    table: dict[str, int] | None = None,
    paths: list[Path] | None = None,
    device: torch.device = torch.device("cpu"),
    dtype: torch.dtype = torch.float32,
    early: bool = False,
    pair: Pair = Pair(),
    block: Block | None = None,
    says: Speaks | None = None,
) -> fl.Recipe:
    "All sorts of flags."
    run = other(made, chain)
    return fl.Recipe(run.step, made, run.data, run.callbacks, steps=1, folder="runs/a")
"""


@pytest.fixture
def others():
    Path("others.py").write_text(OTHERS)


def test_a_default_that_no_text_stands_for_is_the_recipes(capsys, others):
    found = printed(capsys, "others.py")
    assert not {"made", "chain"} & found.keys() and found["act"] == "torch.relu"
    assert main(["fit", "others.py"]) == 0
    assert "82 parameters" in capsys.readouterr().err  # Net(16)
    assert main(["resume", "runs/a"]) == 0
    capsys.readouterr()
    assert "made" in printed(capsys, "others.py", "--made", "Net")


def test_devices_dtypes_and_items_of_containers(capsys, others):
    own = ["--device", "cuda:1", "--dtype", "torch.bfloat16", "--by.a", "nn.ReLU"]
    found = printed(capsys, "others.py", *own, "--parts+", "nn.Tanh", "--parts+", "Net")
    assert (found["device"], found["dtype"]) == ("cuda:1", "bfloat16")
    assert found["by"]["a"]["class_path"] == "torch.nn.ReLU"
    assert [part["class_path"] for part in found["parts"]] == ["torch.nn.Tanh", "r.Net"]


ELSE = (
    "A class of r.py goes by its name there, any other by its dotted path; {}.help lists those "
    "that there are."
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model.widt", "3"],
            "--model: Net has no argument 'widt'. Did you mean 'width'? It has: width, drop.",
        ),
        (["--model.width", "x"], "--model.width takes int, got 'x'."),
        (["--model.width", "null"], "--model.width takes int, got null."),
        (["--model", "null"], "--model takes Callable[[], Module], got null."),
        (["--model", "Nets"], "no class 'Nets'. Did you mean Net? " + ELSE.format("--model")),
        (["--model", "beside.Deap"], "no class 'beside.Deap'. Did you mean beside.Deep?"),
        (["--optimizer", "fl.optim.lyon"], "'fl.optim.lyon'. Did you mean fl.optim.lion?"),
        (["--optimizer", "lyon"], "Did you mean fnloop.optim.lion?"),
        (["--model", "thorch.nn.Sequental"], "Did you mean torch.nn.Sequential?"),
        (["--rate", "1e-x"], "--rate takes float | Schedule, and there is no class '1e-x'."),
        (["--callbacks", "None"], "there is no class 'None'. Nothing is written null"),
        (["--model", ""], "--model needs the name of a class; --model.help lists"),
        (["--model", "Net(width=3)"], "are flags of their own: --model Net --model.width 3"),
        (["--model", "Linear"], "classes are called Linear. Did you mean torch.nn.Linear?"),
        (["--model", "broken.Net"], "broken.Net cannot be imported: No module named 'no_such_mod"),
        (["--optimizer", "Net"], "--optimizer takes Optimizer, and Net is none."),
        (["--model", "loss"], "--model takes Callable[[], Module], and loss is none: it does not"),
        (["--model", "beside.Deep"], "--model: beside.Deep needs its argument 'width'"),
        (["--model", "[Net]"], "--model takes Callable[[], Module], got "),
        (["--callbacks", "fl.early_stopping"], "or --callbacks+ fl.early_stopping to add to one."),
        (
            ["--model", "Twice", "--model.inner.x", "1"],
            "--model.inner: 'x' is an argument of which",
        ),
        (["--model", "Twice", "--model.inner", "Nett"], "--model.inner: there is no class 'Nett'"),
        (
            ["--model", "Twice", "--model.inner", "Net", "--model.inner.widht", "1"],
            "--model.inner: Net has no argument 'widht'. Did you mean 'width'?",
        ),
    ],
)
def test_what_is_wrong_with_a_choice(capsys, arguments, message):
    Path("broken.py").write_text("import no_such_module\n")
    assert message in refused(capsys, "r.py", *arguments)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{class_path: Net, init_arg: {width: 1}}", "got 'init_arg'. Did you mean init_args?"),
        ("{clas_path: Net, init_args: {width: 1}}", "got 'clas_path'. Did you mean class_path?"),
        ("{class_path: Net, width: 1}", "stands within init_args: {width: ...}."),
        ("{class_path: Net, init_args: 3}", "init_args is a mapping, such as {width: 16}, got 3."),
        ("{class_path: 3}", "class_path is the name of a class, got 3."),
        ("{class_path: Net, init_args: {deep: 1}}", "Net has no argument 'deep'."),
        ("{Net: {width: 3}}", "That class is chosen by --model Net, or in YAML by class_path: Net"),
        ("{widht: 3}", "Net has no argument 'widht'. Did you mean 'width'?"),
    ],
)
def test_what_is_wrong_with_a_choice_in_yaml(capsys, value, message):
    Path("wrong.yaml").write_text(f"rows: 4\nmodel: {value}\n")
    told = refused(capsys, "r.py", "--config", "wrong.yaml")
    assert "wrong.yaml:2: model: " in told and message in told and "Namespace" not in told


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("model:\n  class_path: Nett", "wrong.yaml:3: model: there is no class 'Nett'."),
        (
            "model:\n  class_path: Net\n  init_args:\n    width: x",
            "wrong.yaml:5: model.width takes",
        ),
        ("model:\n  class_path: Net\n  init_args:\n    widt: 3", "wrong.yaml:5: model: Net has no"),
        (
            "model:\n  class_path: Net\n  init_args:\n    width: null",
            "wrong.yaml:5: model.width takes int, got null.",
        ),
        (
            "callbacks:\n- class_path: fl.early_stopping\n  init_args: {monitor: loss}\n"
            "- class_path: fl.early_stopping\n  init_args:\n    monitor: loss\n    mode: 3",
            "wrong.yaml:8: callbacks.mode takes",
        ),
    ],
)
def test_an_error_within_a_choice_names_its_own_line(capsys, value, message):
    Path("wrong.yaml").write_text(f"rows: 4\n{value}\n")
    assert message in refused(capsys, "r.py", "--config", "wrong.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "nn.Tahn"], "--kind: there is no class 'nn.Tahn'. Did you mean nn.Tanh?"),
        (["--act", "untold"], "and untold is none: it does not say what it returns, as def f() ->"),
        (["--by", "{a: {class_path: nn.Tahn}}"], "--by.a: there is no class 'nn.Tahn'."),
        (["--parts", "[{nn.Tanh: {}}]"], "--parts: which class? It is chosen by class_path and"),
        (["--color", "blue"], "--color takes one of red, green, got 'blue'."),
        (["--sizes", "x"], "--sizes takes Sizes, got 'x'. It is given by its fields: --sizes.wid"),
        (["--sizes", "{with: 1}"], "--sizes: Sizes has no argument 'with'. Did you mean 'width'?"),
        (["--widths", "1,2"], "takes list[int], got '1,2'. A list is written --widths '[1,2]'."),
        (["--table", "a=1"], "A mapping is written --table '{NAME: VALUE}', or --table.NAME VALUE"),
        (["--device", "cudaa"], "--device takes device, got 'cudaa'."),
        (["--early", "maybe"], "--early takes true or false, got 'maybe'."),
        (["--pair.a", "x"], "--pair.a takes int, got 'x'."),
        (["--pair", "3"], "--pair takes Pair, got 3. It is given by its fields: --pair.a VALUE"),
        (["--block", "Block"], "Block is none that can be made: it is abstract."),
        (["--block", "Loud", "--block.names", "a,b"], "written --block.names '[a,b]'."),
        (["--block", "Loud", "--block.color", "blue"], "takes one of red, green, got 'blue'."),
        (["--says", "Sizes"], "--says takes Speaks | None, got "),
    ],
)
def test_what_is_wrong_with_other_types(capsys, others, arguments, message):
    assert message in refused(capsys, "others.py", *arguments)


def test_the_help_of_a_class_and_of_the_recipe(capsys, others):
    def asked(*arguments):
        assert main(["fit", *arguments]) == 0
        return " ".join(capsys.readouterr().out.split())

    text = asked("r.py", "--model.help", "Net")
    assert text.startswith("usage: fnloop fit r.py --model Net [--model.ARGUMENT VALUE ...] A perc")
    assert "Hidden units. (type: int, default: 8)" in text
    assert "--model.inner.width" in asked("r.py", "--model", "Twice", "--model.inner.help=Net")
    text = asked("r.py", "--model.help", "--print-config")
    assert "r.py Net, Twice torch.nn AdaptiveAvgPool1d," in text
    assert text.endswith("For the arguments of one: fnloop fit r.py --model.help Net")
    assert "Did you mean Net?" in refused(capsys, "r.py", "--model.help", "Nets")
    text = asked("others.py", "--help")
    assert "known subclasses" not in text and "_recipe_" not in text
    assert (
        "All sorts of flags." in text and "default: the recipe's own; see --made.help" not in text
    )
    assert "(type: Callable[[], Module], default: the recipe's own, see --made.help)" in text


@pytest.mark.lightning("I2")
def test_flags_from_environment_variables_that_are_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("TRAIN_ROWS", "4")
    monkeypatch.setenv("TRAIN_MODEL__WIDTH", "5")
    assert printed(capsys, "r.py")["rows"] == 8
    found = printed(capsys, "--config", "c.yaml", "--env", "TRAIN")
    assert (found["rows"], found["model"]["init_args"]["width"]) == (4, 5)
    assert printed(capsys, "r.py", "--env", "TRAIN", "--rows", "2")["rows"] == 2
    monkeypatch.setenv("TRAIN_ROW", "4")
    told = refused(capsys, "r.py", "--env", "TRAIN")
    assert "TRAIN_ROW is no flag. Did you mean TRAIN_ROWS?" in told
