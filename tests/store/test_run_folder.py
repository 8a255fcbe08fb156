"""A folder holds one run: whole runs of `fl.fit`, in one process and in several."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch

import fnloop as fl
from fnloop.store.pages import PAGES


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(12, 3, generator=GENERATOR), torch.randn(12, 1, generator=GENERATOR)
DATA = fl.Batches((X, Y), 4)
STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)))


def state(seed=0):
    return STEP.init(lambda: torch.nn.Linear(3, 1), seed=seed)


def train(folder, epochs=3, begin=None, others=(), **options):
    """A run, and the checkpoint effect that saved it."""
    saving = folder if isinstance(folder, fl.checkpoint) else fl.checkpoint(folder)
    end, history = fl.fit(
        STEP, begin or state(), DATA, epochs=epochs, callbacks=[saving, *others], **options
    )
    return end, history, saving


def bytes_in(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file() and path.name != ".lock"  # which its owner renews
    }


def runs_in(folder):
    return [fl.store.read_manifest(path).get("run") for path in sorted(Path(folder).glob("step-*"))]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# One run


def test_the_notebooks_loop_is_refused_with_three_choices_that_work(here):
    train("runs/a")
    before = bytes_in("runs/a")
    with pytest.raises(FileExistsError) as caught:
        train("runs/a", begin=state(1))
    assert bytes_in("runs/a") == before
    message = str(caught.value)
    assert "runs/a holds another run (completed, epoch 3, 9 batches)" in message
    assert not hasattr(caught.value, "__notes__")
    choices = re.findall(r"fl\.(?:fit|checkpoint)\(.*\)", message)
    assert choices == [
        'fl.fit(..., resume="runs/a")',
        "fl.fit(..., overwrite=True)",
        'fl.checkpoint("runs/a-2", ...)',
    ]
    end, _, _ = train("runs/a-2", begin=state(1))
    assert fl.load("runs/a-2", like=end) == end and bytes_in("runs/a") == before
    end, _, _ = train("runs/a", epochs=5, resume="runs/a")
    assert end.cursor.tolist() == [5, 0, 15]
    end, _, _ = train("runs/a", epochs=1, begin=state(1), overwrite=True)
    assert fl.load("runs/a", like=end) == end and len(runs_in("runs/a")) == 1


def test_nothing_else_is_opened_where_the_run_is_refused(here):
    train("a", others=[fl.track(fl.trackers.JSONL("log.jsonl"))])
    with pytest.raises(FileExistsError):
        fl.fit(
            STEP,
            state(),
            DATA,
            epochs=1,
            callbacks=[fl.track(fl.trackers.JSONL("log.jsonl")), fl.checkpoint("a")],
        )
    assert sorted(os.listdir()) == ["a", "log.jsonl"]


def test_all_checkpoints_and_the_memo_carry_the_runs_identity(here):
    train("a")
    (run,) = set(runs_in("a"))
    assert fl.store.read_manifest(fl.latest("a"))["memos"]["checkpoint"]["run"] == run
    train("a", epochs=5, resume="a")
    assert set(runs_in("a")) == {run}, "a resumed run keeps it"
    train("b", begin=fl.load("a", like=state()))
    assert run not in runs_in("b"), "a fork has its own"


@pytest.mark.parametrize("seed", [0, 1])
def test_resuming_into_another_runs_folder_touches_nothing_in_it(here, seed):
    train("a")
    train("b", epochs=2, begin=state(seed))
    before = bytes_in("a"), bytes_in("b")
    with pytest.raises(FileExistsError, match=r'b holds another run .*\n.*resume="b"\)'):
        train("b", epochs=8, resume="a")
    assert (bytes_in("a"), bytes_in("b")) == before
    train("b", epochs=8, resume="a", overwrite=True)
    assert bytes_in("a") == before[0] and set(runs_in("b")) == set(runs_in("a"))


def test_a_run_may_move_to_an_empty_folder(here):
    train("a")
    before = bytes_in("a")
    train("b", epochs=5, resume="a")
    train("b", epochs=7, resume="b")
    assert bytes_in("a") == before and len(runs_in("b")) == 3


def test_an_explicit_checkpoint_goes_on_with_its_run(here):
    train("a")
    with pytest.warns(UserWarning, match="holds a checkpoint of step 9, and the run goes on from"):
        end, _, _ = train("a", epochs=4, resume="a/step-00000006")
    assert fl.load("a", like=end) == end


def test_two_checkpoint_effects_keep_to_their_own(here):
    def callbacks(best, last):
        validate = fl.every(1, fl.validate(loss, DATA), unit="epoch")
        return [validate, fl.checkpoint(best, keep=1, monitor="val/loss"), fl.checkpoint(last)]

    fl.fit(STEP, state(), DATA, epochs=2, callbacks=callbacks("best", "last"))
    fl.fit(STEP, state(), DATA, epochs=3, callbacks=callbacks("best", "last"), resume="last")
    assert len(set(runs_in("best") + runs_in("last"))) == 1
    before = bytes_in("last")
    train("other", begin=state(1))
    with pytest.raises(FileExistsError, match="last holds another run"):
        fl.fit(STEP, state(), DATA, epochs=5, callbacks=callbacks("new", "last"), resume="other")
    assert bytes_in("last") == before and not os.path.exists("new/.lock")


def test_one_effect_goes_on_from_the_state_with_which_it_ended(here):
    end, _, saving = train("a", epochs=1)
    train(saving, epochs=2, begin=end)
    assert len(set(runs_in("a"))) == 1
    with pytest.raises(FileExistsError):
        train(saving, begin=state())


def test_a_loop_of_ones_own_says_what_it_goes_on_from(here):
    train("a")
    path = fl.latest("a")
    with pytest.raises(FileExistsError):
        fl.run(STEP, fl.load(path, like=state()), DATA, callbacks=[fl.checkpoint("a")])
    loop = fl.run(
        STEP,
        fl.load(path, like=state()),
        DATA,
        epochs=1,
        callbacks=[fl.checkpoint("a")],
        continues=path,
    )
    for _ in loop:
        pass
    assert len(set(runs_in("a"))) == 1 and fl.latest("a").name == "step-00000012"


def test_what_was_saved_by_hand_is_not_trained_over_and_not_deleted(here):
    fl.save(state(), "a")
    before = bytes_in("a")
    with pytest.raises(FileExistsError, match="a holds another run"):
        train("a")
    train("a", resume="a")
    train("a", epochs=6, resume="a")
    assert before.items() <= bytes_in("a").items()
    assert len({*runs_in("a")} - {None}) == 1


# Overwriting


def test_the_old_run_is_there_until_the_first_step_of_the_new_one_is_done(here):
    train("a")
    before = bytes_in("a")

    def broken(model, batch):
        raise RuntimeError("a typo")

    step = fl.pipe(broken, fl.grad, fl.update(fl.optim.sgd(0.1)))
    with pytest.raises(RuntimeError, match="a typo"):
        fl.fit(
            step,
            step.init(torch.nn.Linear(3, 1)),
            DATA,
            epochs=1,
            callbacks=[fl.checkpoint("a", overwrite=True)],
        )
    assert bytes_in("a") == before
    train(fl.checkpoint("a", overwrite=True), epochs=1)
    assert len(runs_in("a")) == 1


def test_a_script_that_overwrites_and_resumes_does_not_lose_its_own(here):
    for epochs in (1, 2, 3):
        train("a", epochs=epochs, resume="a", overwrite=True)
    assert fl.latest("a").name == "step-00000009" and len(set(runs_in("a"))) == 1


# Its best and latest


def test_the_effect_is_asked_for_its_own(here):
    validate = fl.every(1, fl.validate(loss, DATA), unit="epoch")
    saving = fl.checkpoint("a", keep=2, monitor="val/loss")
    assert saving.best() is saving.latest() is None
    fl.fit(STEP, state(), DATA, epochs=3, callbacks=[validate, saving])
    assert saving.best() == fl.best("a").absolute() and saving.latest().name == "step-00000009"
    fl.save(state().replace(cursor=torch.tensor([9, 0, 99])), "a")
    assert fl.latest("a").name == "step-00000099" and saving.latest().name == "step-00000009"


# Several processes and threads

SCRIPT = """
import sys, torch, fnloop as fl
torch.set_num_threads(1)
X = torch.ones(8, 3)
step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.01)))
@fl.effect
def tell(state, metrics):
    if int(state.cursor[2]) == 4: print("saved", flush=True); sys.stdin.readline()
fl.fit(step, step.init(torch.nn.Linear(3, 1), seed=0), fl.Batches(X, 4), epochs=int(sys.argv[2]),
       callbacks=[fl.checkpoint(sys.argv[1]), tell], resume=sys.argv[1])
"""


def script(folder, epochs):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(epochs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_second_process_is_refused_and_one_after_a_kill_goes_on(here):
    first = script("a", 4)
    assert first.stdout.readline() == "saved\n"
    before = bytes_in("a")
    second = script("a", 4)
    _, err = second.communicate("\n")
    assert second.returncode == 1 and f"in use: process {first.pid} on" in err
    assert bytes_in("a") == before
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert os.path.exists("a/.lock")
    third = script("a", 4)
    _, err = third.communicate("\n")
    assert third.returncode == 0, err
    assert f"was left by process {first.pid}" in err and "taken over" in err
    assert sorted(os.listdir("a")) == [f"step-{count:08d}" for count in (4, 6, 8)]


def test_of_two_threads_one_has_the_folder(here):
    ready, errors = threading.Barrier(2), []

    @fl.effect
    def wait(state, metrics):
        if int(state.cursor[2]) == 1:
            ready.wait(30)

    def work(folder):
        try:
            train(folder, others=[wait])
        except FileExistsError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=("a",))]
    threads[0].start()
    while not os.path.exists("a/.lock"):
        time.sleep(0.01)
    with pytest.raises(FileExistsError, match="in use by this very process"):
        train("a")
    ready.wait(30)
    threads[0].join()
    assert not errors and len(runs_in("a")) == 3 and not os.path.exists("a/.lock")


# Paths


def test_a_renamed_folder_is_not_made_again(here):
    @fl.effect
    def rename(state, metrics):
        if int(state.cursor[2]) == 4:
            os.rename("runs/a", "runs/b")

    with pytest.warns(UserWarning) as caught:
        train("runs/a", others=[rename])
    told = [str(warning.message) for warning in caught]
    assert len(told) == 2 and all("runs/a was renamed to " in text for text in told)
    assert "The last state of the run is not saved" in told[1]
    assert os.listdir("runs") == ["b"] and runs_in("runs/b")


def test_a_folder_that_is_renamed_back_is_saved_to_again(here):
    @fl.effect
    def rename(state, metrics):
        count = int(state.cursor[2])
        if count in (2, 4):
            os.rename(*(("a", "b") if count == 2 else ("b", "a")))

    with pytest.warns(UserWarning, match="was renamed to"):
        train("a", others=[rename])
    assert os.listdir() == ["a"] and fl.latest("a").name == "step-00000009"


def test_the_working_directory_may_change(here):
    @fl.effect
    def move(state, metrics):
        if int(state.cursor[2]) == 2:
            os.mkdir("elsewhere")
            os.chdir("elsewhere")

    pytest.importorskip("tensorboard")
    track = fl.track(
        fl.trackers.CSV("a.csv"),
        fl.trackers.JSONL("a.jsonl"),
        fl.trackers.TensorBoard("tb"),
        every=1,
    )
    train("runs/a", others=[move, track])
    assert not os.listdir(here / "elsewhere")
    assert len((here / "a.csv").read_text().splitlines()) == 10
    assert len((here / "a.jsonl").read_text().splitlines()) == 10
    assert len(runs_in(here / "runs/a")) == 3


def test_a_remote_folder_has_one_run_and_a_lock():
    pytest.importorskip("upath")
    folder = "memory://runs/one"
    train(folder)
    with pytest.raises(FileExistsError, match=r'memory://runs/one holds .*\n.*resume="memory://'):
        train(folder)
    train(folder, epochs=5, resume=folder)
    saving = fl.checkpoint(folder)
    loop = fl.run(STEP, state(), DATA, epochs=1, callbacks=[saving], overwrite=True)
    next(loop)
    with pytest.raises(FileExistsError, match="in use by this very process"):
        train(folder, overwrite=True)
    for _ in loop:
        pass
    names = [name.rsplit("/", 1)[-1] for name in saving.folder.fs.ls(saving.folder.path, False)]
    assert names == ["step-00000003"]


# What is only for show


def test_a_long_history_costs_no_more_and_comes_back(here):
    rows = [{"epoch": 1, "step": i, "loss": 1.0 / (i + 1), "acc": i * 0.1} for i in range(20_000)]
    history = fl.History(every=1)

    @fl.effect
    def fill(state, metrics):
        if int(state.cursor[2]) == 1:
            history._rows[:0] = rows

    train("a", others=[history, fill])
    assert len(os.listdir(f"a/{PAGES}")) >= 19
    assert (fl.latest("a") / "manifest.json").stat().st_size < 200_000
    _, resumed, _ = train("a", epochs=5, resume="a", others=[fl.History(every=1)])
    assert resumed.rows[: len(history)] == history.rows and len(resumed) == len(history) + 6
    shutil.rmtree(f"a/{PAGES}")
    with pytest.warns(UserWarning, match="A page of a memo cannot be read, and is left out"):
        _, resumed, _ = train("a", epochs=6, resume="a")
    assert 0 < len(resumed) < 3000


def test_a_run_that_moves_takes_the_pages_with_it(here):
    history = fl.History(every=1)
    history._rows = [{"epoch": 1, "step": i} for i in range(5000)]
    fl.save(state(), "a", memos={"history": history.memo()})
    train("b", resume="a")
    assert {*os.listdir(f"a/{PAGES}")} <= {*os.listdir(f"b/{PAGES}")}
    train("b", epochs=1, overwrite=True)
    assert not os.path.exists(f"b/{PAGES}")


def test_what_is_too_large_for_a_manifest_does_not_keep_a_state_from_being_saved(here):
    config = {"table": list(range(2_000_000))}
    with pytest.warns(UserWarning, match="the configuration is too large .* the state is saved"):
        end, _, _ = train("a", epochs=1, config=config)
    assert fl.load("a", like=end) == end and fl.store.read_manifest(fl.latest("a"))["config"] == {}


def test_a_memo_that_fails_does_not_keep_a_state_from_being_saved(here):
    class Bad(fl.base.Effect):
        name = "bad"

        def __call__(self, state, metrics):
            pass

        def memo(self):
            raise RuntimeError("no memo today")

    with pytest.warns(UserWarning, match="memo of the effect 'bad' is left out.*no memo today"):
        end, _, _ = train("a", others=[Bad()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fl.load("a", like=end) == end


# Trackers


def test_the_files_of_another_run_are_not_gone_on_in(here):
    def trackers(folder):
        return [
            fl.track(
                fl.trackers.CSV(f"{folder}/log.csv"),
                fl.trackers.JSONL(f"{folder}/log.jsonl"),
                every=1,
            )
        ]

    train("a", others=trackers("a"))
    train("b", others=trackers("b"), begin=state(1))
    before = {name: text for name, text in bytes_in("b").items() if name.startswith("log")}
    with pytest.warns(UserWarning, match="holds an earlier run"):
        train("c", epochs=5, others=trackers("b"), resume="a")
    assert before.items() <= bytes_in("b").items()
    assert {"log-2.csv", "log-2.jsonl"} <= bytes_in("b").keys()
    os.rename("a", "moved")
    train("moved", epochs=5, others=trackers("moved"), resume="moved")
    assert len(Path("moved/log.csv").read_text().splitlines()) == 16
