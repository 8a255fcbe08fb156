from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import NESTED, RECIPE


@pytest.fixture
def printed(recipe, cli):
    """The configuration that arguments make."""

    def read(*arguments):
        code, out, err = cli("fit", recipe, *arguments, "--print-config")
        assert code == 0, err
        return yaml.safe_load(out)

    return read


@pytest.fixture
def refused(recipe, cli):
    """The message for wrong arguments, which are usage errors."""

    def read(*arguments):
        code, out, err = cli("fit", recipe, *arguments)
        assert code == 2 and out == "" and "Traceback" not in err
        return err

    return read


def test_a_typo_in_a_flag(refused):
    err = refused("--lrr", "0.1")
    assert "There is no flag --lrr. Did you mean --lr?" in err
    assert "--batch_size" in err


def test_a_typo_in_an_option_of_fit(refused):
    assert "Did you mean --resume?" in refused("--resum")


def test_a_wrong_type(refused):
    assert "--lr takes float, got 'abc'" in refused("--lr", "abc")


def test_a_wrong_type_of_an_int(refused):
    assert "--batch_size takes int, got '1.5'" in refused("--batch-size", "1.5")


def test_a_missing_value(refused):
    assert "--lr needs a value (float)" in refused("--lr")
    assert refused("--note", "--lr", "0.1").endswith("--note needs a value (str | None).\n")


NEGATIVE = ["-1", "-0.001", "-.5", "-1e-3", "-1E-3", "-1.5e+2", "-2."]


@pytest.mark.parametrize("text", NEGATIVE)
def test_negative_numbers_follow_their_flag_however_they_are_written(printed, text):
    for flag, value in {"--lr": float(text), "--note": text}.items():
        assert printed(flag, text)[flag[2:]] == printed(f"{flag}={text}")[flag[2:]] == value


def test_negative_numbers_for_a_part_of_a_flag_and_in_a_list(recipe, cli):
    lists = "batch_size: int = 32, shifts: list[float] = [], each: dict[str, float] = {}"
    recipe.write_text(NESTED.replace("batch_size: int = 32", lists))
    given = ["--opt.lr", "-1e-3", "--shifts+", "-1e-2", "--each.a", "-1e-4", "--early"]
    code, out, err = cli("fit", recipe, *given, "--print-config")
    assert code == 0, err
    found = yaml.safe_load(out)
    assert (found["opt"]["lr"], found["shifts"], found["each"]) == (-1e-3, [-1e-2], {"a": -1e-4})
    assert found["early"] is True


def test_a_run_goes_on_with_a_negative_number(edited, cli):
    recipe = edited("lr: float = 0.05", "lr: float = 0.05, shift: float = 1.0")
    assert cli("fit", recipe, "--shift", "-1e-3", "--epochs", "1")[0] == 0
    assert cli("resume", "runs/line", "--shift", "-2e-3", "--epochs", "2")[0] == 0
    assert yaml.safe_load(Path("runs/line/config.yaml").read_text())["shift"] == -2e-3


def test_a_text_that_begins_like_an_option(refused, printed, cli):
    hint = "--note needs a value (str | None). One that begins with - follows =: --note=-x"
    assert hint in refused("--note", "-x")
    assert printed("--note=-x")["note"] == "-x"
    assert "follows =: --sort=-loss" in cli("runs", "--sort", "-loss")[2]


def test_a_value_for_an_option_that_takes_none(refused):
    assert "--resume takes no value, got '-1'." in refused("--resume", "-1")


def test_a_stray_argument(refused):
    assert "Unexpected argument 'foo'" in refused("foo")
    assert "follows its option: --config a.yaml" in refused("a.yaml")
    assert "There is no flag -epochs. Did you mean --epochs?" in refused("-epochs", "3")


def test_a_required_flag(edited, cli):
    recipe = edited("lr: float = 0.05", "lr: float")
    code, _, err = cli("fit", recipe)
    assert code == 2 and "Missing: --lr" in err


def test_dashes_and_underscores(printed):
    assert printed("--batch-size", "8")["batch_size"] == 8
    assert printed("--batch_size=9")["batch_size"] == 9


def test_booleans(printed):
    assert printed()["early"] is False
    assert printed("--early")["early"] is True
    assert printed("--early", "--lr", "0.1") == {**printed("--early"), "lr": 0.1}
    assert printed("--early", "false")["early"] is False
    assert printed("--early", "--no-early")["early"] is False


def test_the_recipe_may_stand_after_its_flags(cli, recipe):
    code, out, _ = cli("fit", "--lr", "0.1", recipe, "--print-config")
    assert code == 0 and yaml.safe_load(out)["lr"] == 0.1


def test_flags_win_over_the_configuration_wherever_they_stand(printed, tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 1e-4\nepochs: 7\nnote: hello\n")
    found = printed("--epochs", "8", "--config", "a.yaml")
    assert (found["lr"], found["epochs"], found["note"]) == (1e-4, 8, "hello")


@pytest.mark.lightning("I2")
def test_later_configurations_win(printed, tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 0.1\nepochs: 7\n")
    (tmp_path / "b.yaml").write_text("lr: 0.2\n")
    found = printed("--config", "a.yaml", "--config=b.yaml")
    assert (found["lr"], found["epochs"]) == (0.2, 7)


def test_an_unknown_key_in_the_configuration(refused, tmp_path):
    (tmp_path / "a.yaml").write_text("# mine\nlr: 0.1\nbatchsize: 3\n")
    err = refused("--config", "a.yaml")
    assert "a.yaml:3: line.py has no flag 'batchsize'. Did you mean 'batch_size'?" in err


def test_a_wrong_type_in_the_configuration(refused, tmp_path):
    (tmp_path / "a.yaml").write_text("epochs: 3\nlr: fast\n")
    assert "a.yaml:2: lr takes float, got 'fast'" in refused("--config", "a.yaml")


def test_an_error_within_a_dataclass_names_its_own_line(cli, tmp_path):
    (tmp_path / "line.py").write_text(NESTED)
    for entry, told in {
        "lr: fast": "a.yaml:6: opt.lr takes float, got 'fast'.",
        "mometum: 1": "a.yaml:6: opt: Opt has no argument 'mometum'. Did you mean 'momentum'?",
        "lr: null": "a.yaml:6: opt.lr takes float, got null.",
    }.items():
        (tmp_path / "a.yaml").write_text(f"epochs: 3\nopt:\n\n  # mine\n\n  {entry}\n")
        code, _, err = cli("fit", "line.py", "--config", "a.yaml")
        assert code == 2 and told in err, err


def test_null_for_a_dataclass_is_refused(cli, tmp_path):
    (tmp_path / "line.py").write_text(NESTED)
    (tmp_path / "a.yaml").write_text("opt: null\n")
    fields = "takes Opt, got null. It is given by its fields: --opt.lr VALUE --opt.momentum VALUE"
    for arguments, place in (
        (["--config", "a.yaml"], "a.yaml:1: opt"),
        (["--opt", "null"], "--opt"),
    ):
        code, _, err = cli("fit", "line.py", *arguments)
        assert code == 2 and f"{place} {fields}" in err, err


def test_a_default_of_none_allows_null(edited, cli, tmp_path):
    recipe = edited("note: str | None = None", "note: str = None")
    (tmp_path / "a.yaml").write_text("note: null\n")
    for arguments in (["--config", "a.yaml"], ["--note", "null"]):
        code, out, err = cli("fit", recipe, *arguments, "--print-config")
        assert code == 0 and yaml.safe_load(out)["note"] is None, err


def test_a_malformed_configuration(refused, tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 0.1\nepochs: [1\nfolder: x\n")
    assert "a.yaml:3: this is not YAML that fnloop reads" in refused("--config", "a.yaml")


def test_a_configuration_that_is_no_mapping(refused, tmp_path):
    (tmp_path / "a.yaml").write_text("- 1\n- 2\n")
    assert "a.yaml is no configuration: it holds a list" in refused("--config", "a.yaml")


def test_an_empty_configuration_changes_nothing(printed, tmp_path):
    (tmp_path / "a.yaml").write_text("# nothing yet\n")
    assert printed("--config", "a.yaml") == printed()


def test_a_missing_configuration(refused):
    assert "There is no configuration file nope.yaml" in refused("--config", "nope.yaml")


def test_a_configuration_without_a_file(refused):
    assert "--config needs a file" in refused("--config")


def test_an_unreadable_configuration(refused, tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00lr")
    assert "a.yaml cannot be read" in refused("--config", "a.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "folder.yaml cannot be read" in refused("--config", "folder.yaml")


def test_a_key_that_is_given_twice(refused, tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 0.1\nepochs: 3\nlr: 0.2\n")
    err = refused("--config", "a.yaml")
    assert (
        "a.yaml:3: this is not YAML that fnloop reads: 'lr' is given twice, in lines 1 and 3" in err
    )


def test_a_configuration_that_would_not_end(refused, tmp_path):
    (tmp_path / "a.yaml").write_text("[" * 50_000)
    assert "a.yaml:1: " in refused("--config", "a.yaml")
    with (tmp_path / "a.yaml").open("wb") as file:
        file.truncate(1 << 33)  # eight gigabytes that take no place
    assert "a.yaml cannot be read: it has 8,589,934,592 bytes" in refused("--config", "a.yaml")


@pytest.mark.lightning("I2")
def test_variables_of_the_environment_are_no_flags(printed, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    for name in ("FNLOOP FIT_LR", "FNLOOP FIT__LR", "FNLOOP_FIT__LR", "LR"):
        monkeypatch.setenv(name, "7")
    assert printed()["lr"] == 0.05


def test_numpys_numbers_are_defaults_like_others(edited, cli):
    recipe = edited("epochs: int = 3", "epochs: int = np.int64(3)")
    recipe.write_text(
        "import numpy as np\n" + recipe.read_text().replace("0.05", "np.float64(0.05)")
    )
    code, out, err = cli("fit", recipe, "--print-config")
    assert code == 0, err
    assert (yaml.safe_load(out)["lr"], yaml.safe_load(out)["epochs"]) == (0.05, 3)


@pytest.mark.parametrize("word", ["yes", "ON", "true"])
def test_words_for_booleans_on_the_command_line(printed, word):
    assert printed("--early", word)["early"] is printed(f"--early={word}")["early"] is True
    assert printed("--early", "no")["early"] is False


@pytest.mark.parametrize("kind", ["tuple[int, int]", "tuple[float, ...]", "list[str]", "set[int]"])
@pytest.mark.parametrize("text", ["3", "3,4", "a,b", "3,4,5", "(3,4)", "3 4", "null", "a: b", "]"])
def test_a_list_is_written_as_the_message_says(recipe, cli, kind, text):
    recipe.write_text(RECIPE.replace("lr: float = 0.05", f"many: {kind}, lr: float = 0.05"))
    code, _, err = cli("fit", recipe, f"--many={text}", "--print-config")
    written = re.search(r" A list is written --many '(.*)'\.$", err.strip())
    assert code == 2 and written, err
    if "VALUE" in written[1]:
        assert cli("fit", recipe, f"--many=[{text}]", "--print-config")[0] == 2
        assert written[1] == ("[VALUE,VALUE]" if kind == "tuple[int, int]" else "[VALUE,...]")
    else:
        assert cli("fit", recipe, f"--many={written[1]}", "--print-config")[0] == 0
