import contextlib
import errno
import json
import os
import shutil
import warnings

import pytest
import torch

import fnloop as fl
from fnloop.effects.effect import Effect, Run
from fnloop.store import patience
from fnloop.store.checkpoint import checkpoint
from fnloop.store.files import Disk
from fnloop.store.folders import best, latest
from fnloop.store.load import load
from fnloop.store.manifest import read_manifest
from fnloop.store.save import save
from fnloop.trees.equal import tree_equal
from fnloop.values.cursor import Cursor
from fnloop.values.donated import give_away
from fnloop.values.metrics import Last, Mean, Metric
from fnloop.values.start import start
from tests.store.faulty import Faulty

BATCHES = 4  # in an epoch


@fl.tree
class Report(Metric):
    """A metric whose value is a dict of values."""

    def value(self):
        return {"f1": 0.25, "recall": 0.5}


class Note(Effect):
    name = "note"

    def memo(self):
        return {"run": 7}


def state_at(count, value=None):
    state = start(torch.nn.Linear(2, 1), seed=0)
    params = {n: torch.full_like(p, value or count) for n, p in state.params.items()}
    epoch, index = divmod(count, BATCHES)
    return state.replace(params=params, cursor=Cursor(epoch, index, count).tensor())


def begin(effect, count=0, **fields):
    """A run; all are the same one, unless `fields` say otherwise."""
    run = Run(step="the step", state=state_at(count), **{"id": "one", **fields})
    run.effects = run.effects or [effect]
    effect.open(run)
    return effect


def go(effect, counts, scores=(), name="val/loss"):
    """Step through `counts`; `scores` holds the monitored metric where it is reported."""
    scores = dict(scores)
    for count in counts:
        metrics = {"loss": Mean(1.0, 1)}
        if count in scores:
            metrics[name] = Mean(scores[count], 1)
        state = state_at(count)
        effect(state, metrics)
        effect._run.state = state  # as the loop does
    return effect


def on_disk(folder):
    names = {path.name for path in folder.iterdir()} - {".lock"}
    assert not [name for name in names if name.startswith(".")], "litter"
    return sorted(int(name.removeprefix("step-")) for name in names)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# Without a monitor


@pytest.mark.lightning("T21")
def test_each_epochs_end_is_saved_and_the_newest_are_kept(tmp_path):
    effect = begin(checkpoint(tmp_path, keep=2))
    seen = []
    for count in range(1, 17):
        go(effect, [count])
        seen.append(on_disk(tmp_path))
    assert seen[2:5] == [[], [4], [4]] and seen[7] == [4, 8] and seen[-1] == [12, 16]


def test_all_are_kept_on_demand(tmp_path):
    go(begin(checkpoint(tmp_path, keep=None)), range(1, 17))
    assert on_disk(tmp_path) == [4, 8, 12, 16]


def test_every_n_epochs(tmp_path):
    go(begin(checkpoint(tmp_path, keep=None, every=2)), range(1, 17))
    assert on_disk(tmp_path) == [8, 16]


@pytest.mark.lightning("K3")
def test_every_n_steps(tmp_path):
    go(begin(checkpoint(tmp_path, keep=None, every=3, unit="step")), range(1, 11))
    assert on_disk(tmp_path) == [3, 6, 9]


@pytest.mark.lightning("C4")
@pytest.mark.parametrize("status", ["completed", "stopped", "interrupted", "failed"])
def test_the_last_state_is_saved_however_the_run_ends(tmp_path, status):
    effect = go(begin(checkpoint(tmp_path, keep=2)), range(1, 11))
    effect.close(status)
    assert on_disk(tmp_path) == [8, 10]
    assert tree_equal(load(tmp_path, like=state_at(0)), state_at(10))
    assert read_manifest(latest(tmp_path))["status"] == status


def test_the_last_state_is_not_saved_if_not_wanted(tmp_path):
    go(begin(checkpoint(tmp_path, last=False)), range(1, 11)).close("completed")
    assert on_disk(tmp_path) == [4, 8]


def test_a_state_that_is_saved_already_only_gets_its_status(tmp_path):
    effect = go(begin(checkpoint(tmp_path)), range(1, 5))
    file = tmp_path / "step-00000004" / "state.safetensors"
    before = file.stat()
    assert read_manifest(file.parent)["status"] == "running"
    effect.close("completed")
    assert read_manifest(file.parent)["status"] == "completed"
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_run_of_no_steps_saves_nothing(tmp_path):
    begin(checkpoint(tmp_path, monitor="val/loss")).close("completed")
    assert on_disk(tmp_path) == []


# With a monitor


@pytest.mark.lightning("C3", "V2")
def test_lightning_vector_on_disk(tmp_path):
    scores = {1: 5.0, 2: 3.0, 3: 3.0, 5: 4.0, 6: 2.0}
    effect = begin(checkpoint(tmp_path, keep=2, monitor="val/loss", last=False))
    seen = [on_disk(tmp_path) for count in scores if go(effect, [count], scores.items())]
    assert seen == [[1], [1, 2], [2, 3], [2, 3], [3, 6]]
    assert best(tmp_path).name == "step-00000006"


def test_of_equally_good_ones_the_first_is_best(tmp_path):
    effect = begin(checkpoint(tmp_path, monitor="acc", mode="max"))
    go(effect, [1, 2, 3], {1: 0.5, 2: 0.75, 3: 0.75}.items(), name="acc")
    assert best(tmp_path).name == "step-00000002"


def test_nan_is_kept_while_there_is_room_and_never_best(tmp_path):
    nan = float("nan")
    effect = begin(checkpoint(tmp_path, keep=2, monitor="val/loss", last=False))
    go(effect, [1, 2], {1: nan, 2: 1.0}.items())
    assert on_disk(tmp_path) == [1, 2] and best(tmp_path).name == "step-00000002"
    go(effect, [3], {3: nan}.items())
    assert on_disk(tmp_path) == [1, 2]
    go(effect, [5], {5: 2.0}.items())
    assert on_disk(tmp_path) == [2, 5]


@pytest.mark.lightning("K3")
def test_the_newest_is_kept_beside_the_best(tmp_path):
    effect = begin(checkpoint(tmp_path, keep=1, monitor="val/loss"))
    scores = {4: 1.0, 8: 2.0, 12: 3.0}.items()
    go(effect, range(1, 5), scores)
    assert on_disk(tmp_path) == [4]
    go(effect, range(5, 9), scores)
    assert on_disk(tmp_path) == [4, 8], "8 is not best, but newest"
    go(effect, range(9, 15), scores)
    assert on_disk(tmp_path) == [4, 12]
    effect.close("interrupted")
    assert on_disk(tmp_path) == [4, 14]
    assert best(tmp_path).name == "step-00000004" and latest(tmp_path).name == "step-00000014"


def test_validation_in_the_middle_of_an_epoch(tmp_path):
    effect = begin(checkpoint(tmp_path, keep=1, monitor="val/loss"))
    go(effect, [1, 2, 3, 4, 5, 6], {2: 2.0, 6: 1.0}.items())
    assert on_disk(tmp_path) == [6], "the best is also the newest"
    go(effect, [7, 8])
    assert on_disk(tmp_path) == [6, 8]


def test_only_the_newest(tmp_path):
    go(begin(checkpoint(tmp_path, keep=0, monitor="val/loss")), range(1, 10), [(4, 1.0)])
    assert on_disk(tmp_path) == [8]


def test_the_manifest_says_what_was_monitored(tmp_path):
    effect = begin(checkpoint(tmp_path, monitor="val/loss"), config={"lr": 0.1})
    go(effect, range(1, 9), {4: 1.5}.items())
    first, second = (read_manifest(tmp_path / f"step-0000000{n}") for n in (4, 8))
    assert first["monitor"] == {"name": "val/loss", "mode": "min", "value": 1.5}
    assert first["metrics"] == {"loss": 1.0, "val/loss": 1.5} and first["config"] == {"lr": 0.1}
    assert first["pipeline"] == "'the step'"
    assert second["monitor"] is None and second["metrics"] == {"loss": 1.0}


def test_one_value_of_a_metric_with_several(tmp_path):
    effect = begin(checkpoint(tmp_path, monitor="val/report/f1", mode="max"))
    effect(state_at(1), {"val/report": Report()})
    assert read_manifest(latest(tmp_path))["monitor"]["value"] == 0.25


def test_a_metric_that_was_never_reported_is_warned_of_at_the_end(tmp_path):
    effect = go(begin(checkpoint(tmp_path, monitor="val_loss")), range(1, 6), [(4, 1.0)])
    with pytest.warns(UserWarning, match=r"'val_loss' was never reported.* were: loss, val/loss"):
        effect.close("completed")
    assert on_disk(tmp_path) == [5]


def test_a_run_cut_short_before_its_validation_is_not_warned_of(tmp_path):
    go(begin(checkpoint(tmp_path, monitor="val/loss")), [1, 2]).close("interrupted")
    assert on_disk(tmp_path) == [2]


def test_a_metric_reported_now_and_then_is_not_warned_of(tmp_path):
    effect = begin(checkpoint(tmp_path, monitor="val/loss"))
    go(effect, range(1, 7), [(4, 1.0)]).close("completed")
    assert on_disk(tmp_path) == [4, 6]


# Trouble


def test_a_folder_that_cannot_be_written_is_an_error_before_the_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/runs .* read-only run folder"):
        begin(checkpoint(tmp_path / "file" / "runs"))


def test_two_in_one_folder_are_an_error(tmp_path):
    one, two = checkpoint(tmp_path), checkpoint(str(tmp_path), monitor="val/loss")
    with pytest.raises(ValueError, match="Two checkpoint effects write to"):
        begin(one, effects=[one, two])


def test_a_full_disk_is_warned_of_once_and_tried_again(tmp_path, monkeypatch):
    effect = begin(checkpoint(tmp_path, keep=1, monitor="val/loss"))
    go(effect, range(1, 5), [(4, 3.0)])
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    with pytest.warns(
        UserWarning, match="step-00000008 was not saved.*The run continues"
    ) as caught:
        go(effect, range(5, 17), {8: 2.0, 16: 1.0}.items())
    assert len(caught) == 1
    assert on_disk(tmp_path) == [4]
    assert effect.memo()["best"] == [[4, 3.0]], "what is not on the disk is not among the best"
    monkeypatch.undo()
    go(effect, range(17, 21), [(20, 2.5)])
    assert on_disk(tmp_path) == [20] and effect.memo()["best"] == [[20, 2.5]]


def test_a_full_disk_at_the_end_is_warned_of(tmp_path, monkeypatch):
    effect = go(begin(checkpoint(tmp_path)), range(1, 6))
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    with pytest.warns(UserWarning, match="The last state of the run is not saved"):
        effect.close("completed")
    assert on_disk(tmp_path) == [4]


def test_a_state_that_a_failed_step_consumed_is_warned_of(tmp_path):
    effect = go(begin(checkpoint(tmp_path)), [1])
    give_away(effect._run.state, state_at(2))
    with pytest.warns(UserWarning, match="last state of the run is not saved"):
        effect.close("failed")


def test_what_cannot_be_deleted_now_is_deleted_later(tmp_path, monkeypatch):
    effect = begin(checkpoint(tmp_path, keep=1))
    go(effect, range(1, 5))
    rename = os.replace

    def busy(source, target):
        if str(source).endswith("step-00000004"):
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(source, target)

    monkeypatch.setattr(os, "replace", busy)
    with pytest.warns(UserWarning, match="cannot be deleted") as caught:
        go(effect, range(5, 13))
    assert len(caught) == 1
    assert on_disk(tmp_path) == [4, 8, 12]
    monkeypatch.undo()
    go(effect, range(13, 17))
    assert on_disk(tmp_path) == [16]


def test_the_old_one_is_there_until_the_new_one_is(tmp_path, monkeypatch):
    effect = begin(checkpoint(tmp_path, keep=1))
    go(effect, range(1, 5))
    rename, seen = os.replace, []

    def noted(source, target):
        seen.append(latest(tmp_path).name)
        rename(source, target)

    monkeypatch.setattr(os, "replace", noted)
    go(effect, range(5, 9))
    assert seen == ["step-00000004", "step-00000008"]  # at the commit, at the deletion


def test_later_ones_of_the_same_run_are_warned_of_and_left_alone(tmp_path):
    for count in (4, 8, 100):
        save(state_at(count, value=-1), tmp_path, run="one")
    effect = checkpoint(tmp_path, keep=1)
    with pytest.warns(UserWarning, match=r"holds a checkpoint of step 100, .*goes on from step 0"):
        begin(effect)
    go(effect, range(1, 9))
    assert on_disk(tmp_path) == [8, 100]
    assert tree_equal(load(tmp_path / "step-00000008", like=state_at(0)), state_at(8))


def test_what_a_killed_run_left_behind_is_swept_up(tmp_path):
    (tmp_path / ".step-00000004.tmp-0123abcd").mkdir()
    begin(checkpoint(tmp_path))
    assert on_disk(tmp_path) == []


# Memory


def recalled(effect, path, count, **fields):
    """A new process: `effect` gets back the memo that the checkpoint holds."""
    (path.parent / ".lock").unlink(missing_ok=True)  # that of the process before
    effect.recall(json.loads(json.dumps(read_manifest(path)["memos"]))[effect.name])
    return begin(effect, count, **fields)


@pytest.mark.lightning("K1", "H9")
def test_every_effects_memo_is_kept(tmp_path):
    effect = checkpoint(tmp_path)
    go(begin(effect, effects=[Note(), effect]), range(1, 5))
    assert read_manifest(latest(tmp_path))["memos"]["note"] == {"run": 7}


@pytest.mark.parametrize("at", [4, 8, 12, 16])
def test_a_resumed_run_decides_like_one_that_never_stopped(tmp_path, at):
    scores = {4: 3.0, 8: 1.0, 12: 2.0, 16: 2.0, 20: 1.5}

    def make(folder):
        return checkpoint(folder, keep=2, monitor="val/loss")

    whole = go(begin(make(tmp_path / "a")), range(1, 21), scores.items())
    go(begin(make(tmp_path / "b")), range(1, at + 1), scores.items())
    resumed = recalled(make(tmp_path / "b"), latest(tmp_path / "b"), at)
    go(resumed, range(at + 1, 21), scores.items())
    assert on_disk(tmp_path / "a") == on_disk(tmp_path / "b")
    assert resumed.memo() == whole.memo()


def test_without_a_monitor_a_resumed_run_goes_on_deleting(tmp_path):
    go(begin(checkpoint(tmp_path, keep=2)), range(1, 9))
    go(recalled(checkpoint(tmp_path, keep=2), latest(tmp_path), 8), range(9, 13))
    assert on_disk(tmp_path) == [8, 12]


def test_the_best_that_are_gone_are_forgotten(tmp_path):
    scores = {4: 1.0, 8: 2.0}.items()
    go(begin(checkpoint(tmp_path, keep=2, monitor="val/loss")), range(1, 9), scores)
    shutil.rmtree(tmp_path / "step-00000004")
    effect = recalled(checkpoint(tmp_path, keep=2, monitor="val/loss"), latest(tmp_path), 8)
    assert effect.memo()["best"] == [[8, 2.0]]
    go(effect, range(9, 13), [(12, 3.0)])
    assert on_disk(tmp_path) == [8, 12]


def test_a_smaller_keep_deletes_the_rest(tmp_path):
    scores = {4: 1.0, 8: 2.0, 12: 3.0}.items()
    go(begin(checkpoint(tmp_path, keep=3, monitor="val/loss")), range(1, 13), scores)
    recalled(checkpoint(tmp_path, keep=1, monitor="val/loss"), latest(tmp_path), 12)
    assert on_disk(tmp_path) == [4, 12]


def test_what_a_killed_run_did_not_get_to_delete_is_deleted(tmp_path, monkeypatch):
    effect = begin(checkpoint(tmp_path, keep=1))
    go(effect, range(1, 5))
    monkeypatch.setattr(checkpoint, "_delete", lambda self: None)
    go(effect, range(5, 9))
    monkeypatch.undo()
    assert on_disk(tmp_path) == [4, 8]
    recalled(checkpoint(tmp_path, keep=1), latest(tmp_path), 8)
    assert on_disk(tmp_path) == [8]


class Unreadable(Disk):
    """A disk that cannot read one checkpoint."""

    def __init__(self, name):
        self.name = name

    def open(self, path):
        if self.name in path.parts:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return super().open(path)


def test_what_cannot_be_read_now_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "DELAYS", ())
    go(begin(checkpoint(tmp_path, keep=3)), range(1, 17))
    assert on_disk(tmp_path) == [8, 12, 16]
    older = tmp_path / "step-00000008"  # its memo does not know the later ones
    effect = checkpoint(tmp_path, keep=2, files=Unreadable("step-00000012"))
    with pytest.warns(UserWarning, match="step-00000012.*cannot be read now.*left alone until"):
        recalled(effect, older, 16, continues=older)
    assert effect.memo()["recent"] == [8, 16]
    go(effect, range(17, 25))
    assert on_disk(tmp_path) == [12, 20, 24]
    go(recalled(checkpoint(tmp_path, keep=2), latest(tmp_path), 24), range(25, 29))
    assert on_disk(tmp_path) == [24, 28]  # it could be read


@pytest.mark.parametrize("at", [4, 8, 12, 16])
def test_in_an_outage_nothing_is_deleted_by_mistake(tmp_path, monkeypatch, at):
    monkeypatch.setattr(patience, "DELAYS", ())
    scores = {4: 3.0, 8: 1.0, 12: 2.0, 16: 2.0}.items()
    go(begin(checkpoint(tmp_path, keep=2, monitor="val/loss")), range(1, at + 1), scores)
    there, calls = on_disk(tmp_path), Faulty(Disk())
    older = tmp_path / f"step-{there[0]:08d}"
    effect = checkpoint(tmp_path, keep=2, monitor="val/loss", files=calls)
    recalled(effect, older, at, continues=older)
    for n in range(len(calls.calls)):
        files = Faulty(Disk(), n, errno.EIO, onwards=True)
        effect = checkpoint(tmp_path, keep=2, monitor="val/loss", files=files)
        with warnings.catch_warnings(), contextlib.suppress(OSError):
            warnings.simplefilter("ignore")
            recalled(effect, older, at, continues=older)
        effect.release()
        names = {int(path.name[5:]) for path in tmp_path.glob("step-*")}
        assert names == {*there}, calls.calls[n]


def test_another_monitor_begins_anew_and_deletes_nothing_of_the_old(tmp_path):
    scores = {4: 1.0, 8: 2.0}.items()
    go(begin(checkpoint(tmp_path, monitor="val/loss", name="c")), range(1, 9), scores)
    effect = checkpoint(tmp_path, keep=1, monitor="val/acc", mode="max", name="c")
    with pytest.warns(UserWarning, match=r"'val/loss' \(min\), and now monitors 'val/acc' \(max\)"):
        recalled(effect, latest(tmp_path), 8)
    go(effect, range(9, 17), {12: 0.5, 16: 0.6}.items(), name="val/acc")
    assert on_disk(tmp_path) == [4, 8, 16]


def test_one_effect_for_two_runs_that_follow_one_another(tmp_path):
    effect = begin(checkpoint(tmp_path, keep=1, monitor="val/loss"))
    go(effect, range(1, 8), [(4, 1.0)]).close("completed")
    go(begin(effect, 7, id="two"), range(8, 12), [(8, 2.0)]).close("completed")
    assert on_disk(tmp_path) == [4, 11]


def test_one_effect_for_two_runs_that_have_nothing_to_do_with_one_another(tmp_path):
    effect = begin(checkpoint(tmp_path, keep=1, monitor="val/loss"))
    go(effect, range(1, 9), [(8, 1.0)]).close("completed")
    with pytest.raises(FileExistsError, match="holds another run"):
        begin(effect, 0, id="two")
    begin(effect, 0, id="two", overwrite=True)
    go(effect, range(1, 5), [(4, 2.0)])
    assert effect.memo()["best"] == [[4, 2.0]] and on_disk(tmp_path) == [4]


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "lowest"}, "got 'lowest'"),
        ({"unit": "batch"}, r"checkpoint\(unit=\.\.\.\) .* got 'batch'"),
        ({"unit": "step"}, "needs every="),
        ({"every": 0}, r"checkpoint\(every=\.\.\.\) .* got 0"),
        ({"keep": 0}, r"checkpoint\(keep=\.\.\.\) .* got 0"),
        ({"keep": -1, "monitor": "x"}, r"checkpoint\(keep=\.\.\.\) .* got -1"),
    ],
)
def test_arguments_that_make_no_sense_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        checkpoint("runs", **arguments)


def test_what_is_not_the_end_of_an_epoch_is_not_taken_for_one(tmp_path):
    effect = begin(checkpoint(tmp_path))
    effect(state_at(0), {"lr": Last(0.1)})
    assert on_disk(tmp_path) == []


def test_memory_that_grows_is_refused_when_it_is_saved(tmp_path):
    @fl.tree
    class collect(fl.base.Callback):
        label = "collect"
        name: str = "collect"

        def init_state(self, state, metrics):
            return {"losses": torch.zeros(1)}

        def __call__(self, state, x):
            losses = state[self.name]["losses"]
            if int(state.cursor[2]) > 2:
                losses = torch.cat([losses, torch.ones(1)])
            return state.put(self.name, {"losses": losses}), x

    step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    saving = fl.checkpoint(tmp_path, every=1, unit="step")
    state = step.init(torch.nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"slots/collect/losses +f32\[1\] +f32\[2\]"):
        fl.fit(
            step, state, fl.Batches(torch.ones(8, 2), 2), epochs=2, callbacks=[collect(), saving]
        )
    assert fl.latest(tmp_path).name == "step-00000003"  # nothing is lost
