"""What does fl.compile record of what people write? From the root of a clone:

    python -m tests.batteries.habits                 # all, in a minute
    python -m tests.batteries.habits --only mixup    # those with this in their name
    python -m tests.batteries.habits --markdown      # print the table of docs/internals/habits.md

Each is a loss of a few lines. It is recorded and equals the step that is not compiled, or it is
refused by an error that names its line; then what the error proposes is recorded and is compared
with it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from .habit import Habit, tried
from .habits_layers import LAYERS
from .habits_losses import LOSSES
from .habits_values import VALUES

HABITS = [*LOSSES, *LAYERS, *VALUES]


def table(rows: Mapping[str, str]) -> str:
    """What was found, as Markdown, with the counts."""
    lines = [
        "| habit | compiled | what the message proposes | which was tried |",
        "| --- " * 4 + "|",
    ]
    for habit in HABITS:
        if habit.name in rows:
            proposed = habit.refused.replace("|", "\\|")
            cells = [habit.name, rows[habit.name], proposed, _proposal(habit)]
            lines.append(f"| {' | '.join(cells)} |")
    counts = {word: list(rows.values()).count(word) for word in ("recorded", "refused", "FAILED")}
    said = ", ".join(f"{count} {word}" for word, count in counts.items())
    return "\n".join([*lines, "", f"{len(rows)} habits: {said}."])


def _proposal(habit: Habit) -> str:
    if not habit.refused:
        return ""
    if habit.instead is None:
        return "in the documentation"
    return "records" if habit.redrawn else "records, equal"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="if its name has this")
    parser.add_argument("--markdown", action="store_true", help="print a table at the end")
    options = parser.parse_args(arguments)
    rows: dict[str, str] = {}
    for habit in HABITS:
        if options.only and not any(part in habit.name for part in options.only):
            continue
        try:
            rows[habit.name] = tried(habit)
        except Exception as error:
            rows[habit.name] = "FAILED"
            print(f"{habit.name}: {type(error).__name__}: {error}", file=sys.stderr)
    print(table(rows) if options.markdown else table(rows).splitlines()[-1])
    return int("FAILED" in rows.values())


if __name__ == "__main__":
    sys.exit(main())
