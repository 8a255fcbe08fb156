"""A run in which every step is skipped says so, and ends."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.loop.skipped import NothingTrainedError


def loss(model, batch):
    return nn.functional.mse_loss(model(batch["x"]), batch["y"])


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
GOOD = {"x": torch.ones(8, 3), "y": torch.ones(8, 1)}


def data(examples: int, batch_size: int = 4) -> fl.Batches:
    x = torch.ones(examples, 4)
    x[:, 1] = torch.nan
    x[:, 3] = torch.inf
    return fl.Batches({"x": x[:, :3], "y": torch.ones(examples, 1)}, batch_size)


def run(examples: int, folder=None, **arguments):
    callbacks = [fl.every(1, fl.validate(loss, GOOD), unit="epoch")]
    callbacks += [fl.checkpoint(folder, monitor="val/loss")] if folder else []
    state = STEP.init(nn.Linear(3, 1))
    return fl.fit(STEP, state, data(examples), callbacks=callbacks, **arguments)


def test_a_whole_epoch_without_a_step_is_an_error_that_names_the_leaf(tmp_path) -> None:
    with pytest.raises(
        NothingTrainedError, match=r"33\.3 % of batch/x is not finite\. Clean"
    ) as error:
        run(100, tmp_path, epochs=3)
    assert int(error.value.state.cursor[2]) == 24  # the first epoch has 25
    assert fl.best(tmp_path) is None


def test_a_long_epoch_is_warned_of_early_and_not_waited_for() -> None:
    match = "The last 50 steps were all skipped"
    with (
        pytest.warns(UserWarning, match=match),
        pytest.raises(NothingTrainedError, match="The last 1000 steps"),
    ):
        run(8000, epochs=1)


@pytest.mark.parametrize("epochs", [1, 4])
def test_a_run_that_is_too_short_for_that_is_stopped_with_a_reason(tmp_path, epochs) -> None:
    with pytest.warns(UserWarning, match=f"The last {3 * epochs} steps were all skipped"):
        _, history = run(12, tmp_path, epochs=epochs)
    assert history.status == "stopped"
    assert (
        history.reason
        == "no step was committed: in the last batch, 33.3 % of batch/x is not finite"
    )
    assert fl.best(tmp_path) is None and fl.latest(tmp_path) is not None


def test_a_finite_batch_is_said_to_be_finite() -> None:
    step = fl.pipe(lambda m, b: (m(b).mean() * 0).log(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    with pytest.warns(UserWarning, match=r"the batch is finite\. The usual causes: .* fl\.replay"):
        fl.fit(step, step.init(nn.Linear(1, 1)), [torch.ones(2, 1)], epochs=3)


def mixed(*good: bool):
    """Batches, good and bad."""
    bad = {"x": torch.full((8, 3), torch.nan), "y": torch.ones(8, 1)}
    return [GOOD if each else bad for each in good]


@pytest.mark.parametrize(
    "batches",
    [
        mixed(*[False] * 49, True),  # as when a loss scale settles
        mixed(*[True] * 3),
        mixed(*([False] * 30 + [True]) * 4),
    ],
    ids=["late", "good", "now and then"],
)
def test_a_run_with_committed_steps_is_not_ended(batches) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, history = fl.fit(STEP, STEP.init(nn.Linear(3, 1)), batches, epochs=2)
    assert history.status == "completed"


def test_a_run_that_dies_later_is_ended_too() -> None:
    batches = mixed(*[True] * 60, *[False] * 3000)
    with pytest.raises(NothingTrainedError, match="The last 1000 steps"):
        fl.fit(STEP, STEP.init(nn.Linear(3, 1)), batches, epochs=1)


def test_a_function_that_moves_no_count_is_no_skipped_step() -> None:
    def step(state, batch):
        return state, {"loss": fl.Last(1.0)}

    _, history = fl.fit(step, STEP.init(nn.Linear(3, 1)), [GOOD] * 60, epochs=2)
    assert history.status == "completed"


@pytest.mark.lightning("H1")
def test_a_batch_can_be_skipped_from_a_loss() -> None:
    def choosy(model, batch):
        result = loss(model, batch)
        return fl.Mean(0 * result, 0) if len(batch["x"]) < 8 else result

    step = fl.pipe(choosy, fl.grad, fl.update(fl.optim.adamw(0.1)))
    state = step.init(nn.Linear(3, 1))
    small = {"x": torch.ones(2, 3), "y": torch.ones(2, 1)}
    after, metrics = step(state, small)
    assert float(metrics["skipped"]) == 1 and fl.tree_equal(after.params, state.params)
    assert float(step(after, GOOD)[1]["skipped"]) == 0


def test_steps_that_a_guard_takes_back_are_given_more_time() -> None:
    def never(state, metrics):
        return state, {**metrics, "bad": state.params.norm() >= 0}

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), fl.guard(never))
    state = step.init(nn.Linear(3, 1))
    _, history = fl.fit(step, state, [GOOD] * 30, epochs=3)
    assert history.status == "completed" and sum(history["guard"]) == 90
    with pytest.raises(NothingTrainedError, match=r"fl\.guard takes each step back"):
        fl.fit(step, state, [GOOD] * 30, epochs=40)


def bad_rows(every: int):
    x = torch.ones(100, 3)
    x[::every] = torch.nan
    return fl.Batches({"x": x, "y": torch.ones(100, 1)}, 1, shuffle=False)


def test_a_run_that_skips_many_steps_says_how_many(caplog) -> None:
    _, history = fl.fit(STEP, STEP.init(nn.Linear(3, 1)), bad_rows(5), epochs=2)
    assert "40 of 200 steps were skipped" in caplog.text
    assert history.status == "completed" and sum(history["skipped"]) == 40


@pytest.mark.parametrize("few", [10, 50, 100])
def test_a_few_skipped_steps_are_told_with_the_rows_that_do_it(caplog, few) -> None:
    fl.fit(STEP, STEP.init(nn.Linear(3, 1)), bad_rows(few), epochs=2)
    (text,) = caplog.messages
    count = 100 // few
    assert text.startswith(f"{2 * count} of 200 steps were skipped")
    assert f" {count} % of data/x is not finite (rows 0" in text
    assert "data/y" not in text and "Clean the data" in text


def test_a_loop_of_ones_own_is_told_too_and_other_data_get_the_usual_causes(caplog) -> None:
    batches = mixed(*[True] * 30, False, *[True] * 9)
    for _ in fl.run(STEP, STEP.init(nn.Linear(3, 1)), batches, epochs=1):
        pass
    (text,) = caplog.messages
    assert text.startswith("1 of 40 steps were skipped") and "learning rate" in text


def test_data_that_are_drawn_ahead_are_looked_through(caplog) -> None:
    fl.fit(STEP, STEP.init(nn.Linear(3, 1)), fl.data.prefetch(bad_rows(50)), epochs=1)
    assert "2 % of data/x is not finite (rows 0, 50)" in caplog.text


def test_a_loss_scale_may_skip_a_few_steps_unheard(caplog) -> None:
    step = fl.pipe(loss, fl.grad, fl.amp("fp16", init_scale=2.0**24), fl.update(fl.optim.sgd(1e-3)))
    batches = fl.Batches({"x": torch.rand(40, 3), "y": torch.rand(40, 1)}, 1)
    _, history = fl.fit(step, step.init(nn.Linear(3, 1)), batches, epochs=3)
    assert 0 < sum(history["skipped"]) <= 30 and not caplog.messages


@pytest.mark.parametrize("members", [1, 2])
def test_skipped_steps_are_counted_beside_early_stopping(caplog, members) -> None:
    step = STEP if members == 1 else fl.ensemble(STEP, members)
    batches = [GOOD, {**GOOD, "y": torch.full((8, 1), torch.nan)}]
    callbacks = [fl.every(1, fl.validate(loss, GOOD)), fl.early_stopping("val/loss", patience=100)]
    fl.fit(step, step.init(nn.Linear(3, 1)), batches, steps=10, callbacks=callbacks)
    assert f"{5 * members} of {10 * members} steps were skipped" in caplog.text


def test_a_run_without_a_skipped_step_says_nothing(caplog) -> None:
    fl.fit(STEP, STEP.init(nn.Linear(3, 1)), [GOOD] * 30, epochs=3)
    assert not caplog.messages


def well(folder, **arguments):
    """A run on good data into a folder."""
    callbacks = [fl.checkpoint(folder, keep=3)]
    state = STEP.init(nn.Linear(3, 1))
    return fl.fit(STEP, state, [GOOD] * 4, epochs=1, callbacks=callbacks, **arguments)


@pytest.mark.parametrize("examples", [100, 12], ids=["failed", "stopped"])
def test_the_folder_of_a_run_that_trained_nothing_is_free_for_the_mended_one(
    tmp_path, caplog, examples
) -> None:
    with contextlib.suppress(NothingTrainedError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(examples, tmp_path, epochs=1)
    (left,) = tmp_path.glob("step-*")
    well(tmp_path)
    assert "no step was committed: it is replaced" in caplog.text
    assert not left.exists() and int(fl.load(tmp_path, like=STEP.init(nn.Linear(3, 1))).step) == 4
    with pytest.raises(FileExistsError, match="holds another run"):
        well(tmp_path)


def test_the_folder_of_a_run_that_died_later_is_not_free(tmp_path) -> None:
    batches = mixed(*[True] * 60, *[False] * 3000)
    callbacks = [fl.checkpoint(tmp_path)]
    with pytest.raises(NothingTrainedError):
        state = STEP.init(nn.Linear(3, 1))
        fl.fit(STEP, state, batches, epochs=1, callbacks=callbacks)
    with pytest.raises(FileExistsError, match="holds another run"):
        well(tmp_path)


def test_the_folder_of_an_untrained_run_that_went_on_is_not_free(tmp_path) -> None:
    with pytest.raises(NothingTrainedError):
        run(100, tmp_path, epochs=1)
    mended = fl.Batches({"x": torch.ones(100, 3), "y": torch.ones(100, 1)}, 4)
    state = STEP.init(nn.Linear(3, 1))
    callbacks = [fl.checkpoint(tmp_path, keep=9)]
    state, _ = fl.fit(STEP, state, mended, epochs=3, callbacks=callbacks, resume=tmp_path)
    assert int(state.step) == 3 * 25 - 24
    with pytest.raises(FileExistsError, match="holds another run"):
        well(tmp_path)
