"""The lines of `fl.progress`, as text that fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fnloop.effects.activity import Activity
from fnloop.effects.spans import spans

_GAP = "  "


def live_line(
    columns: int,
    place: str,
    done: int,
    total: int | None,
    numbers: Mapping[str, float],
    speed: str,
    left: str,
    activity: Sequence[str] = (),
) -> str:
    """The line that changes: place, bar, metrics, speed and time left, as far as they fit.

    What does not fit is left out as a whole: first the speed, then metrics from the last one on,
    then the time left. The bar keeps its width.

    Args:
        columns: How many characters fit.
        place: Where the run is, such as ``"epoch 1/3"``.
        done, total: Batches drawn of how many; None if unknown.
        numbers: Metrics by name.
        speed, left: Texts; may be empty.
        activity: What is going on, from `nested`, in place of the metrics and the speed.

    >>> print(live_line(60, "epoch 1/3", 5, 10, {"loss": 0.25, "accuracy": 0.5}, "9 it/s", "1 s"))
    epoch 1/3  ━━━━━━──────  5/10  loss 0.25  1 s left  +1
    """
    count = f"{done}/{total}" if total else f"batch {done}"
    start = [place, *([_bar(done / total, columns)] if total else []), count]
    left = f"{left} left" if left else ""
    if activity:
        return _GAP.join(fitting(columns, [*start, *activity]))
    metrics = [f"{name} {text}" for name, text in spans(numbers).items()]
    by_rank = [text for text in (*metrics[:1], left, *metrics[1:], speed) if text]
    room = columns - len(_GAP.join(start))
    if len("".join(by_rank)) + len(_GAP) * len(by_rank) > room:
        room -= len("  +99")
    chosen: list[str] = []
    for text in by_rank:
        room -= len(_GAP) + len(text)
        if room < 0:
            break
        chosen.append(text)
    dropped = sum(text not in chosen for text in metrics)
    shown = [text for text in (*metrics, speed, left) if text in chosen]
    return _GAP.join(fitting(columns, [*start, *shown, *([f"+{dropped}"] if dropped else [])]))


def nested(activity: Activity, columns: int) -> list[str]:
    """What is going on within a step: with a bar of its own, if one knows how much there is to do.

    >>> from fnloop.effects.activity import Activity
    >>> activity = Activity("val", total=4)
    >>> activity.done = 3
    >>> print(live_line(60, "epoch 1/3", 5, 10, {}, "", "", nested(activity, 60)))
    epoch 1/3  ━━━━━━──────  5/10  val  ━━━━──  3/4
    """
    if not activity.total:
        return [activity.text()]
    share, left = activity.done / activity.total, activity.left()
    parts = [activity.what, _bar(share, columns // 2, least=5), f"{activity.done}/{activity.total}"]
    return [*parts, *([] if left is None else [f"{duration(left)} left"])]


def kept_line(columns: int | None, parts: Sequence[str], numbers: Mapping[str, float]) -> str:
    """A line that stays; the last metrics are left out where it would not fit.

    >>> kept_line(32, ["epoch 1/3", "1.5 s"], {"loss": 0.25, "accuracy": 0.5})
    'epoch 1/3  1.5 s  loss 0.25  +1'
    >>> kept_line(None, ["epoch 1/3", "1.5 s"], {"loss": 0.25, "accuracy": 0.5})
    'epoch 1/3  1.5 s  loss 0.25  accuracy 0.5'
    """
    metrics = [f"{name} {text}" for name, text in spans(numbers).items()]
    if columns is None:
        return _GAP.join([*parts, *metrics])
    for shown in range(len(metrics), -1, -1):
        more = [f"+{len(metrics) - shown}"] if shown < len(metrics) else []
        line = _GAP.join([*parts, *metrics[:shown], *more])
        if len(line) <= columns:
            return line
    return _GAP.join(fitting(columns, parts))


def fitting(columns: int, parts: Sequence[str]) -> list[str]:
    """The first parts that fit into a line; at least a part of the first."""
    room, found = columns + len(_GAP), list[str]()
    for part in parts:
        room -= len(_GAP) + len(part)
        if room < 0:
            break
        found.append(part)
    return found or [parts[0][:columns]]


def duration(seconds: float) -> str:
    """Seconds as text.

    >>> duration(4.25), duration(75), duration(3725)
    ('4.2 s', '0:01:15', '1:02:05')
    """
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{int(rest):02}" if seconds >= 60 else f"{seconds:.1f} s"


def _bar(share: float, columns: int, least: int = 10) -> str:
    width = max(least, min(24, columns // 5))
    filled = min(width, round(share * width))
    return "━" * filled + "─" * (width - filled)
