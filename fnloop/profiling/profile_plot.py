"""A profile as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fnloop.loop.figures import COLORS, GREY, label, new_figure, written
from fnloop.profiling.allocations import Allocation
from fnloop.profiling.findings import ms, share
from fnloop.profiling.profile_report import Profile
from fnloop.profiling.profile_summary import beside_stages, by_size, shortened, stage_name
from fnloop.trees.show import bytes_text

MOST = 8

_NAMES = 30


class _Bar(NamedTuple):
    """A line of a panel: its parts side by side, and what is written behind them."""

    name: str
    parts: Sequence[float]
    text: str


def draw_profile(profile: Profile, path: str | Path | None) -> Any:
    """See `Profile.plot`."""
    figure = new_figure(10.5, 7.2, "profile.plot()")
    panels = [figure.add_subplot(2, 2, i) for i in range(1, 5)]
    _times(panels[0], profile)
    _modules(panels[1], profile)
    _memory(panels[2], profile)
    _tensors(panels[3], profile)
    return written(figure, path)


def _times(axes: Any, profile: Profile) -> None:
    """Waiting for data, the stages, and what the loop took beside them."""
    parts = [("waiting for data", profile.waiting)]
    parts += [(stage_name(stage), stage.seconds) for stage in profile.stages]
    parts += beside_stages(profile).items()
    shown = sorted(parts, key=lambda part: -part[1])[:MOST]
    bars = [
        _Bar(name, [1e3 * seconds], ms(seconds))
        for name, seconds in parts
        if (name, seconds) in shown
    ]
    title = "time of a step" + (", uncompiled" if profile.compiled else "")
    _bars(axes, title, "ms", bars, COLORS[:1])


def _modules(axes: Any, profile: Profile) -> None:
    whole = sum(module.seconds for module in profile.modules)
    bars = [
        _Bar(
            f"{m.path} ({m.kind})",
            [1e3 * m.forward, 1e3 * m.backward],
            f"{share(m.seconds, whole)}",
        )
        for m in profile.modules[:MOST]
    ]
    if not bars:
        bars = [
            _Bar(o.name.removeprefix("aten::"), [1e3 * o.seconds], f"{o.calls} calls")
            for o in profile.operators[:MOST]
        ]
        _bars(axes, "time by operator", "ms", bars, COLORS[:1])
        return
    how = ", uncompiled" if profile.compiled else ""
    _bars(axes, "time by module, under a profiler" + how, "ms", bars, COLORS[:2])
    handles = [axes.containers[0], axes.containers[1]]
    below: dict[str, Any] = {"loc": "upper right", "bbox_to_anchor": (1.0, -0.12), "ncols": 2}
    axes.legend(handles, ["forward", "backward"], frameon=False, fontsize=9, **below)


def _memory(axes: Any, profile: Profile) -> None:
    times = [1e3 * seconds for seconds, _ in profile.memory]
    unit, size = _unit(max([size for _, size in profile.memory], default=0))
    sizes = [count / size for _, count in profile.memory]
    axes.fill_between(times, sizes, step="post", color=COLORS[0], alpha=0.25, linewidth=0)
    axes.step(times, sizes, where="post", color=COLORS[0], linewidth=1.2)
    state = bytes_text(sum(profile.state_bytes.values()))
    how = ", compiled" if profile.compiled else ""
    label(axes, f"memory added to a state of {state}{how}", "ms, under a profiler", unit)
    axes.set_ylim(bottom=0)


def _tensors(axes: Any, profile: Profile) -> None:
    """The peak, by what its tensors are: activations by module, as deep as they are few."""
    shown: list[tuple[str, int]] = []
    for depth in (9, 3, 2, 1):
        sizes: dict[str, int] = {}
        for tensor in profile.tensors:
            name = _what(tensor, depth)
            sizes[name] = sizes.get(name, 0) + tensor.bytes
        parts = by_size(sizes)
        shown, rest = parts[: MOST - 1], sum(count for _, count in parts[MOST - 1 :])
        shown += [("others", rest)] if rest else []
        if not rest or rest < parts[0][1]:
            break
    unit, size = _unit(max([count for _, count in shown], default=0))
    bars = [_Bar(name, [count / size], bytes_text(count)) for name, count in shown]
    how = ", uncompiled" if profile.compiled else ""
    _bars(
        axes, f"what the {bytes_text(profile.peak)} at the peak are{how}", unit, bars, COLORS[2:3]
    )


def _what(tensor: Allocation, depth: int) -> str:
    if tensor.kind == "activation":
        return f"activations of {'.'.join(tensor.place.split('.')[:depth])}"
    if tensor.kind == "other":
        return tensor.name
    if tensor.kind == "new state":
        folder = tensor.name.rpartition("/")[0].removeprefix("slots/")
        return f"new {folder or tensor.name}"
    return "gradients" if tensor.kind == "gradient" else f"temporary in {tensor.place}"


def _bars(axes: Any, title: str, unit: str, bars: list[_Bar], colors: Sequence[str]) -> None:
    label(axes, title, unit, "")
    places = list(range(len(bars)))
    starts = [0.0] * len(bars)
    for i, color in enumerate(colors):
        widths = [bar.parts[i] for bar in bars]
        axes.barh(places, widths, left=starts, color=color, height=0.65)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for place, end, bar in zip(places, starts, bars, strict=True):
        axes.annotate(
            bar.text,
            (end, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=GREY,
        )
    axes.set_yticks(places, [shortened(bar.name, _NAMES) for bar in bars])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_xlim(0, 1.35 * max(starts, default=1.0) or 1.0)


def _unit(most: int) -> tuple[str, float]:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if most >= size:
            return unit, size
    return "bytes", 1.0
