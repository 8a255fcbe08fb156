"""Lines fit, whatever they hold."""

from __future__ import annotations

import pytest

from fnloop.loop.progress_line import kept_line, live_line

METRICS = {f"{prefix}metric{i}": 10.0**-i for i in range(6) for prefix in ("", "val/")}


@pytest.mark.parametrize("columns", [20, 40, 79, 119, 200])
@pytest.mark.parametrize("total", [None, 40, 123_456])
@pytest.mark.parametrize(
    "activity", [(), ("compiling, 12 s",), ("val", "━━━━─", "10/20", "9 s left")]
)
def test_no_line_is_longer_than_the_terminal_and_nothing_is_cut(columns, total, activity) -> None:
    line = live_line(columns, "epoch 3/20", 7, total, METRICS, "12.3 it/s", "1:02:03", activity)
    assert len(line) <= columns
    bar, *_ = [part for part in line.split("  ") if "─" in part] or [""]
    if total and columns >= 79:
        assert len(bar) >= 15 and ("  ".join(activity) or "1:02:03 left") in line
    known = {f"{name} {value:.4g}" for name, value in METRICS.items()}
    known |= {bar, "epoch 3/20", "7/40", "7/123456", "batch 7", "12.3 it/s", "1:02:03 left"}
    known |= {*activity, ""} | {f"+{n}" for n in range(13)}
    assert set(line.split("  ")) <= known
    kept = kept_line(columns, ["epoch 3/20", "1.0 s"], METRICS)
    assert len(kept) <= columns and set(kept.split("  ")) <= known | {"1.0 s"}


def test_what_is_left_out_is_counted() -> None:
    line = live_line(79, "epoch 1/2", 1, 2, METRICS, "9 it/s", "9.0 s")
    shown = sum("metric" in part for part in line.split("  "))
    assert 0 < shown < 12 and line.endswith(f"+{12 - shown}")
    wide = live_line(400, "epoch 1/2", 1, 2, METRICS, "9 it/s", "9.0 s")
    assert "+" not in wide.replace("e+", "") and wide.endswith("9 it/s  9.0 s left")


def test_activity_takes_the_place_of_metrics() -> None:
    line = live_line(79, "epoch 1/2", 2, 2, METRICS, "9 it/s", "9.0 s", ("val", "3/9"))
    assert line == "epoch 1/2  " + "━" * 15 + "  2/2  val  3/9"
