"""What people write is recorded, or is refused with a remedy that works."""

from __future__ import annotations

import pytest
from torch.nn import functional as F

from .habit import Habit, habits, tried
from .habits import HABITS, main, table
from .habits_losses import LOSSES
from .habits_values import VALUES


@pytest.mark.parametrize("habit", [*LOSSES, *VALUES], ids=lambda habit: habit.name)
def test_a_habit_is_recorded_or_refused_with_a_remedy_that_works(habit: Habit) -> None:
    assert tried(habit) == ("refused" if habit.refused else "recorded")


def test_most_are_recorded() -> None:
    assert len({habit.name for habit in HABITS}) == len(HABITS) >= 100
    assert sum(not habit.refused for habit in HABITS) >= 80


def test_a_habit_that_is_written_down_wrongly_fails() -> None:
    found, habit = habits()

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    def chooses(model, batch):
        return loss(model, batch) * (2 if batch[1].max() > 9 else 1)

    def other(model, batch):
        return 2 * loss(model, batch)

    habit(refused="a value")(loss)
    habit()(chooses)
    habit(refused="something else")(chooses)
    habit(refused="torch.where", instead=other)(chooses)
    habit(refused="torch.where", instead=chooses)(chooses)
    for each in found:
        with pytest.raises((AssertionError, RuntimeError)):
            tried(each)
    habit(refused="torch.where", instead=loss)(chooses)
    assert tried(found[-1]) == "refused"


def test_the_table_has_a_row_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = table({habit.name: "recorded" for habit in HABITS}).splitlines()
    rows = [line for line in lines if "| recorded |" in line]
    assert len(rows) == len(HABITS)
    assert {row.replace("\\|", "").count("|") for row in rows} == {5}
    assert main(["--only", "label smoothing"]) == 0
    assert "1 habits: 1 recorded, 0 refused, 0 FAILED." in capsys.readouterr().out
