"""The benchmarks do what they say; and (slow) fnloop is as fast as it is meant to be."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import subprocess
import sys
import time

import pytest
import torch

import fnloop as fl

from . import compare_checkouts, extras, lengths, machine, memory, population, report, screen, steps
from .__main__ import main
from .compiling import cold_and_warm
from .contenders import (
    CONTENDERS,
    DONATED,
    DONATED_TOGETHER,
    FUSED,
    JAX,
    JAX_TOGETHER,
    LIGHTNING,
    Contender,
    chosen,
    sort,
)
from .loops import Clocked, grouped, looped, watched
from .models import BY_CHANCE, CASES, MEASURED, MODELS
from .problems import LR, PROBLEMS, WEIGHT_DECAY, Problem
from .results import load, save
from .timing import Row, interleave, summary, table, used

EAGER = [c for c in CONTENDERS.values() if not c.compiles and not c.needs and not c.pictures]
LAST = CONTENDERS["by hand, fused, channels last"]
PEERS = [c for c in CONTENDERS.values() if c.group == "peer" and c.name != JAX_TOGETHER]


def by_the_book(problem: Problem, n: int) -> list[float]:
    """The losses of n steps of AdamW, by the formula of Loshchilov and Hutter (2019)."""
    model = problem.model()
    params = list(model.parameters())
    means = [torch.zeros_like(p) for p in params]
    squares = [torch.zeros_like(p) for p in params]
    losses = []
    for t, batch in enumerate(itertools.islice(itertools.cycle(problem.batches), n), start=1):
        with problem.autocast():
            loss = problem.loss(model, batch)
        grads = torch.autograd.grad(loss, params)
        losses.append(loss.item())
        for p, g, m, v in zip(params, grads, means, squares, strict=True):
            m += (1 - 0.9) * (g - m)
            v += (1 - 0.999) * (g * g - v)
            step = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            p.data = p.data - LR * (step + WEIGHT_DECAY * p.data)
    return losses


def trained(contender: Contender, problem: Problem, n: int) -> float:
    training = contender.build(problem, time.perf_counter)
    assert training.block(n) > 0
    return training.loss()


def test_paired_figures():
    times = {"a": iter([0.0, 2e-6, 4e-6, 6e-6]), "b": iter([0.0, 3e-6, 5e-6, 12e-6])}
    blocks = {name: lambda n, each=each: next(each) * n for name, each in times.items()}
    samples = interleave(blocks, rounds=3, steps=10, warmup=1)
    assert samples["b"] == pytest.approx([3, 5, 12])
    a, b = summary(samples, baseline="a")
    assert (a.name, a.ratio, a.noise, a.extra) == ("a *", 1.0, 0.0, 0.0)
    assert (b.median, b.least) == pytest.approx((5, 3))
    assert b.ratio == pytest.approx(1.5)  # of 3/2, 5/4, 12/6
    assert b.noise == pytest.approx(0.75)  # the quartiles of three values are the outer two
    assert b.extra == pytest.approx(1)  # of 1, 1, 6
    assert table("title", [a, b]).splitlines()[2].split()[:2] == ["a", "*"]


@pytest.mark.parametrize("contender", EAGER, ids=lambda c: c.name)
@pytest.mark.parametrize("case", ["mlp", "narrow", "logged", "cnn"])
def test_eager_contenders_train_the_same_model(case, contender):
    problem = PROBLEMS[case]()
    expected = by_the_book(problem, 5)
    assert abs(expected[4] - expected[0]) > 1e-3  # so that agreement says something
    assert trained(contender, problem, 5) == pytest.approx(expected[4], rel=1e-5)


def test_the_layout_changes_nothing_in_the_mathematics():
    problem = PROBLEMS["cnn"]()
    assert trained(LAST, problem, 5) == pytest.approx(by_the_book(problem, 5)[4], rel=1e-5)


@pytest.mark.parametrize("case", MODELS)
def test_fnloop_and_a_loop_by_hand_train_the_models_that_people_bring(case):
    problem = MODELS[case]()
    by_hand, fit = (CONTENDERS[name] for name in (FUSED, screen.FIT))
    first, losses = trained(by_hand, problem, 1), [trained(c, problem, 4) for c in (by_hand, fit)]
    assert first != pytest.approx(losses[0], rel=1e-5)
    by_chance = problem.rtol == BY_CHANCE
    assert losses[1] == pytest.approx(losses[0], rel=BY_CHANCE if by_chance else 1e-5)


@pytest.mark.parametrize("contender", EAGER, ids=lambda c: c.name)
def test_accumulating_is_the_big_batch(contender):
    problem = PROBLEMS["gpt-accumulate"]()
    assert problem.micro == len(problem.parts(problem.batches[0])) == 4
    expected = by_the_book(problem, 2)[1]
    assert trained(contender, problem, 2) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("contender", PEERS, ids=lambda c: c.name)
@pytest.mark.parametrize("case", ["mlp", "cnn", "gpt", "gpt-accumulate"])
@pytest.mark.filterwarnings("ignore")  # theirs
def test_peers_train_the_same_model(case, contender):
    for library in contender.needs:
        pytest.importorskip(library)
    problem = PROBLEMS[case]()
    if case == "gpt-accumulate" and contender.name == "Accelerate":
        from accelerate.state import GradientState

        GradientState._reset_state()
    expected = by_the_book(problem, 3)[2]
    assert trained(contender, problem, 3) == pytest.approx(expected, rel=1e-4)


def test_a_model_has_the_same_weights_each_time():
    for problem in (CASES[name]() for name in CASES):
        before = torch.get_rng_state()
        first, second = problem.model(), problem.model()
        assert torch.equal(torch.get_rng_state(), before)
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(a, b)
    assert len(list(PROBLEMS["many"]().model().parameters())) == 2000


def test_all_losses_are_read_where_the_case_says_so():
    reads = []
    block = looped(PROBLEMS["logged"](), time.perf_counter, lambda batch: 1, reads.append).block
    block(3)
    assert reads == [1, 1, 1]
    looped(PROBLEMS["mlp"](), time.perf_counter, lambda batch: 1, reads.append).block(3)
    assert len(reads) == 3


def test_a_call_of_several_steps_is_timed_by_the_step():
    problem, now, calls = PROBLEMS["mlp"](), 0.0, []

    def call(batches):
        nonlocal now
        now += 16.0
        calls.append(batches)
        return batches

    batches = grouped(range(32))
    block = looped(problem, lambda: now, call, lambda loss: 0.0, batches=batches, each=8).block
    assert block(16) == 32.0
    assert block(4) == 8.0  # a call, of which half counts
    assert calls == [list(range(8)), list(range(8, 16)), list(range(16, 24))]


@pytest.mark.parametrize("case", ["mlp", "logged", "gpt-accumulate"])
def test_jax_makes_several_steps_in_a_call(case):
    pytest.importorskip("jax")
    problem = PROBLEMS[case]()
    assert trained(CONTENDERS[JAX_TOGETHER], problem, 8) == pytest.approx(
        by_the_book(problem, 8)[7], rel=1e-4
    )


def test_fnloop_makes_several_steps_in_a_call(monkeypatch):
    monkeypatch.setattr(fl, "compile", functools.partial(fl.compile, backend="aot_eager"))
    problem = PROBLEMS["logged"]()
    assert trained(CONTENDERS[DONATED_TOGETHER], problem, 8) == pytest.approx(
        by_the_book(problem, 8)[7], rel=1e-4
    )


def test_steps_are_timed_from_batch_to_batch():
    problem, now = PROBLEMS["mlp"](), 100.0
    seen = []

    def fit(batches: Clocked) -> None:
        nonlocal now
        now += 50  # opening is not timed
        for batch in itertools.islice(batches, batches.steps):
            seen.append(batch)
            now += 2 if len(seen) > 2 else 9  # nor are the first steps: a quarter of them
        now += 50

    training = watched(problem, lambda: now, fit, lambda: 0.0)
    assert training.block(8) == pytest.approx(8 * 2)
    assert len(seen) == 8
    parts = [part for batch in problem.batches for part in (batch, batch)]
    seen = [None] * 3
    assert watched(problem, lambda: now, fit, lambda: 0.0, parts).block(8) == pytest.approx(16 * 2)
    assert len(seen) == 3 + 16  # two batches make a step


@pytest.mark.parametrize("losses", [{"a": 1.0, "b": 1.1}, {"a": 1.0, "b": math.nan}])
def test_losses_that_differ_are_an_error(losses):
    steps.check_losses({"a": 1.0, "b": 1.0 + 1e-4}, rtol=1e-3)
    with pytest.raises(ValueError, match=r"a has 1\.000000, but \{'b'"):
        steps.check_losses(losses, rtol=1e-3)


def test_a_contender_that_trains_something_else_stops_the_comparison():
    right = CONTENDERS[FUSED]
    wrong = right._replace(name="wrong", build=lambda p, c: right.build(_doubled(p), c))
    with pytest.raises(ValueError, match="wrong"):
        steps.compare(PROBLEMS["mlp"](), [right, wrong], rounds=1)


def _doubled(problem: Problem) -> Problem:
    return problem._replace(loss=lambda model, batch: 2 * problem.loss(model, batch))


def test_compiling_while_timed_is_an_error():
    graphs = itertools.count()
    right = CONTENDERS[FUSED]

    def build(problem, clock):
        return right.build(problem, clock)._replace(graphs=lambda: next(graphs))

    with pytest.raises(RuntimeError, match="compiled while timed"):
        steps.compare(PROBLEMS["mlp"](), [right._replace(build=build)], rounds=1)


def test_a_comparison():
    contenders = chosen(["by hand, default", FUSED, "fnloop, eager"])
    missing = CONTENDERS[JAX]._replace(name="missing", needs=["no_such_library"])
    result = steps.compare(PROBLEMS["mlp"](), [*contenders, missing], rounds=2, seconds=1e-4)
    assert [row.name.removesuffix(" *") for row in result.rows] == [c.name for c in contenders]
    assert result.baseline in ("by hand, default", FUSED)
    assert result.left_out == {"missing": "no_such_library is not installed"}
    assert all(math.isfinite(row.median) and row.median > 0 for row in result.rows)
    assert [row.name for row in result.eager] == [row.name for row in result.rows]  # none compiles
    assert steps.compare(PROBLEMS["mlp"](), contenders[2:], rounds=1, seconds=1e-4).eager == []


def test_contenders_are_chosen_by_name_or_by_a_part_of_it():
    assert [c.name for c in chosen([FUSED])] == [FUSED]
    assert {c.group for c in chosen(["Lightning", "JAX"])} == {"peer"}
    assert len(chosen(None)) == len(CONTENDERS)
    with pytest.raises(ValueError, match="'nobody'"):
        chosen(["nobody"])
    problem = PROBLEMS["mlp"]()._replace(left_out={FUSED: "too slow"})
    assert sort(chosen([FUSED]), problem) == ([], {FUSED: "too slow"})
    assert sort([LAST], PROBLEMS["mlp"]()) == ([], {LAST.name: "nothing convolves over pictures"})
    assert sort([LAST], PROBLEMS["cnn"]()) == ([LAST], {})


def test_loops_are_around_steps_that_are_there():
    assert all(c.around in CONTENDERS for c in CONTENDERS.values() if c.around is not None)


def test_caches_are_empty_for_the_first_process_and_shared_with_the_second():
    folders = []

    def measure(environment):
        assert environment["PATH"] == os.environ["PATH"]
        folders.append(environment["TORCHINDUCTOR_CACHE_DIR"])
        assert not os.path.exists(folders[-1]) if len(folders) == 1 else os.path.exists(folders[-1])
        os.makedirs(folders[-1], exist_ok=True)
        return {"seconds": 10 / len(folders), "graphs": 2, "later": 0}

    found = cold_and_warm(measure)
    assert found == {"cold": 10, "warm": 5, "graphs": 2, "later": 0}
    assert folders[0] == folders[1]
    assert cold_and_warm(lambda environment: {"error": "failed"}) == {"error": "failed"}
    assert not os.path.exists(folders[0])


@pytest.mark.parametrize("name", ["run", "fit", "fit, all with JSONL"])
def test_extras_are_timed_from_batch_to_batch(name, tmp_path):
    looks = itertools.count()
    block = extras.contenders(PROBLEMS["mlp"](), lambda: next(looks), tmp_path)[name]
    assert block(3) == 3  # a look at the clock for each step, and none for opening and closing


def test_the_command_measures_in_a_process_of_its_own(capsys, tmp_path):
    words = ["--threads", "1", "--contender", FUSED, "--contender", "fnloop, eager"]
    done = main(["step", "--case", "mlp", "--quick", "--results", str(tmp_path), *words])
    assert done == 0
    assert "fnloop, eager" in capsys.readouterr().out
    results = load(tmp_path, list(MEASURED))
    names = [row["name"] for row in results.step[1]["mlp"]["rows"]]
    assert names == [f"{FUSED} *", "fnloop, eager"]
    assert "not for quoting" in results.about["step.mlp.1"]["note"]


def test_a_part_that_fails_is_said_and_fails_the_command(capsys, tmp_path):
    words = ["--threads", "1", "--contender", "nobody", "--results", str(tmp_path)]
    assert main(["step", "--case", "mlp", *words]) == 1
    assert "No contender is called 'nobody'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_checkout_is_as_fast_as_itself(capsys):
    root = str(compare_checkouts.ROOT)
    words = ["--problems", "mlp", "--modes", "eager", "--rounds", "3", "--pairs", "1"]
    assert compare_checkouts.main([root, *words]) == 0
    head, _, line = capsys.readouterr().out.splitlines()
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    assert float(cells["this, us"]) > 0
    assert 0.5 < float(cells["ratio"]) < 2


def test_a_checkout_without_fnloop_is_said(tmp_path, capsys):
    words = ["--problems", "mlp", "--modes", "eager", "--rounds", "1"]
    assert compare_checkouts.main([str(tmp_path), *words]) == 1
    assert "FAILED mlp, eager" in capsys.readouterr().err


def test_who_goes_first_alternates():
    asked = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def block(self, n):
            asked.append(self.name)
            return n * 1e-2

    samples = compare_checkouts.alternate({"a": Fake("a"), "b": Fake("b")}, rounds=3)
    assert samples == {"a": pytest.approx([1e4] * 3), "b": pytest.approx([1e4] * 3)}
    assert "".join(asked[-6:]) in ("abbaab", "baabba")


POPULATIONS = {
    "singles": population.singles,
    "by hand": population.by_hand,
    "vmapped": functools.partial(population.ensemble, mode="vmap"),
    "looped": functools.partial(population.ensemble, mode="loop"),
}


@pytest.mark.parametrize("build", POPULATIONS.values(), ids=POPULATIONS.keys())
def test_a_population_is_trained_as_its_members_are(build, monkeypatch):
    monkeypatch.setattr(fl, "compile", lambda step, donate: step)
    problem, models = population.population(members=3, size=8)
    block, loss = build(problem, models)
    assert block(3) > 0
    alone = []
    for model in models:
        step = population.single(problem)
        state = step.init(model)
        for batch in problem.batches[:3]:
            state, metrics = step(state, batch)
        alone.append(float(metrics["loss"]))
    assert len(set(alone)) == 3
    assert loss() == pytest.approx(sum(alone) / 3, rel=1e-5)


def test_a_population_against_its_members(monkeypatch, capsys):
    monkeypatch.setattr(fl, "compile", lambda step, donate: step)
    assert population.main(["--members", "2", "--batches", "8", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert f"| 8 | {population.VMAPPED} |" in out
    assert f"| 8 | {population.SINGLES} |" in out and f"| 8 | {population.HAND} |" in out


@pytest.mark.parametrize("name", lengths.CONTENDERS)
def test_texts_are_trained_alike_by_hand_and_by_fnloop(name):
    texts = lengths.texts(3 * lengths.BATCH)
    data = lengths.batches(name, texts)
    assert {len(batch["tokens"]) for batch, _, _ in data} == {lengths.BATCH}
    by_hand, with_fnloop = lengths.by_hand(data, False), lengths.with_fnloop(data, False)
    for _ in range(2):
        assert with_fnloop() == pytest.approx(by_hand(), rel=1e-4)


def test_texts_measured_in_this_process(capsys):
    arguments = ["--only", lengths.EAGER, "--examples", "64", "--epochs", "2"]
    assert lengths.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["graphs"] == 0 and 0 < found["padding"] < 0.4 and found["us"] > 0
    assert lengths.line(found)[0] == "0"


def test_the_peak_of_memory_is_counted(tmp_path, capsys):
    words = ["--contender", FUSED, "--threads", "1", "--results", str(tmp_path)]
    assert main(["memory", *words]) == 0
    found = json.loads((tmp_path / "memory.wide.json").read_text())["figures"][FUSED]
    assert found["megabytes"] == pytest.approx(12 * (2048 + 1) * 2048 * 4 / 1e6)
    # Parameters, two running means and gradients, which stay until the next step begins.
    assert 3.98 < found["resting"] < 4.02
    assert 3.98 < found["peak"] < 4.2


@pytest.mark.skipif(not memory.available(), reason="this system does not tell the peak")
def test_a_look_at_the_memory_sees_what_was_there_since_the_last():
    look = memory.Looks()
    kept = torch.ones(10_000_000)
    look()
    assert 39e6 < look.rise < 45e6
    torch.ones(5_000_000)
    look()
    assert 19e6 < look.rise < 25e6
    others = [torch.eye(2).to_sparse()]
    torch.func.grad(lambda x: [others.append(x), x.sum()][1])(torch.ones(2))
    before = memory.tensors()
    del kept
    assert before - memory.tensors() == 40_000_000
    assert len(others) == 2  # which have no memory of their own
    look()
    look()
    assert look.rise < 5e6


def test_the_processors_seconds_have_those_of_processes_that_ended():
    start = used()
    subprocess.run([sys.executable, "-c", "while __import__('time').process_time() < 0.2: pass"])
    assert 0.2 <= used() - start < 2


def test_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n")
    rows = summary({FUSED: [100.0], DONATED: [40.0]}, FUSED)
    figures = {
        "rows": [row._asdict() for row in rows],
        "baseline": FUSED,
        "losses": {FUSED: 2.0, DONATED: 2.5},
        "loop_us": {DONATED: 8.0},
        "rounds": 1,
        "steps": 10,
        "left_out": {JAX: "jax is not installed"},
    }
    seconds = {"cold": 12.34, "warm": 5.0, "graphs": 2, "later": 1}
    about = {"processor": "a good one", **machine.versions()}
    save(tmp_path, "step.mlp.1", about, figures)
    save(tmp_path, "compile.mlp", about, {DONATED: seconds, JAX: {"error": "failed"}})
    save(tmp_path, "memory.wide", about, {FUSED: {"megabytes": 201.4, "peak": 4.1, "resting": 4.0}})
    results = load(tmp_path, list(MEASURED))
    for _ in range(2):  # writing again replaces
        report.write(page, report.markdown(results, {1: "images/chart.png"}))
    lines = page.read_text().splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert "old" not in lines
    for line in (
        f"| {FUSED} | **1.00** |",
        f"| {DONATED} | 0.40 |",
        "| processor | a good one |",
        f"| **{FUSED}** | 100 | 0 | 1.00 | 0.00 |  |",
        f"| {DONATED} | 40 | 0 | 0.40 | 0.00 | +8 |",
        f"Left out: {JAX} (jax is not installed).",
        f"| {DONATED} | 12.3 / 5.0 |",
        f"| {DONATED} | 2 + 1 |",
        f"| {JAX} | failed |",
        f"| {FUSED} | 4.10 | 4.00 |",
    ):
        assert lines.count(line) == 1, line
    assert "losses are between 2.000000 and 2.500000" in page.read_text()
    assert "(images/chart.png)" in page.read_text()


def test_a_screen_has_what_is_behind_first_and_in_bold(tmp_path):
    about = machine.description()
    us = {FUSED: [100.0], screen.FIT: [104.0], JAX: [35.0], JAX_TOGETHER: [20.0], DONATED: [40.0]}
    slow = {FUSED: [1000.0], screen.FIT: [1060.0], screen.COMPILED: [800.0], DONATED: [900.0]}
    for case, samples, best in (("mlp", us, FUSED), ("gru", slow, screen.COMPILED)):
        figures = {
            "rows": [row._asdict() for row in summary(samples, best)],
            "eager": [row._asdict() for row in summary(samples, FUSED)],
            "baseline": best,
            "rounds": 1,
        }
        save(tmp_path, f"step.{case}.1", about, figures)
    peaks = {FUSED: 4.0, screen.COMPILED: 3.9, screen.FIT: 4.02, DONATED: 3.95}
    figures = {name: {"megabytes": 10.0, "peak": peak} for name, peak in peaks.items()}
    save(tmp_path, "memory.mlp", about, figures)
    seconds = {screen.COMPILED: {"cold": 10.0, "warm": 2.0}, DONATED: {"cold": 9.0, "warm": 2.5}}
    save(tmp_path, "compile.mlp", about, seconds)
    lines = screen.markdown(screen.lines(load(tmp_path, list(MEASURED)))).splitlines()
    assert lines[2:] == [
        "| `mlp` | fused, 100 µs | 0.40 ± 0.00 |  | 1.04 ± 0.00 | **0.35 ± 0.00** "
        f"| 0.20 ± 0.00 / {screen.NONE} "
        "| 40.0 / 40.2 | 39.0 / **39.5** | 10.0 / 9.0 | 2.0 / **2.5** |",
        "| `gru` | compiled loss, 800 µs | **1.12 ± 0.00** |  | **1.06 ± 0.00** "
        "|  |  |  |  |  |  |",
    ]


def test_the_noise_of_a_ratio_is_that_of_its_median(tmp_path):
    samples = {FUSED: [100.0] * 4, DONATED: [101.0, 101.0, 109.0, 109.0]}
    figures = {"rows": [row._asdict() for row in summary(samples, FUSED)], "eager": []}
    save(tmp_path, "step.mlp.1", {}, {**figures, "baseline": FUSED, "rounds": 4})
    (line,) = screen.lines(load(tmp_path, list(MEASURED)))
    assert line.steps[0].text == "1.05 ± 0.06"  # 1.57 * 0.08 / 2
    assert not line.steps[0].is_behind()


def test_a_figure_is_behind_beyond_its_noise():
    assert screen.Figure("", 1.03, 0.02).is_behind()
    assert not screen.Figure("", 1.03, 0.04).is_behind()
    assert not screen.Figure("").is_behind()


def test_the_chart_of_all_models_has_a_point_for_each_that_was_measured():
    chart = pytest.importorskip("tests.benchmarks.chart")
    axes = chart.screen_figure({"mlp": {FUSED: 1.0, DONATED: 0.4}, "gru": {FUSED: 2.5}}).axes[0]
    points = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert points[chart.SHOWN[FUSED]] == [[1.0, 0], [chart.LONGEST, 1]]
    assert points[chart.SHOWN[DONATED]] == [[0.4, 0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mlp", "gru"]


def test_the_chart_has_a_bar_for_each_that_was_measured(tmp_path):
    chart = pytest.importorskip("tests.benchmarks.chart")
    rows = summary({FUSED: [100.0], DONATED: [40.0], LIGHTNING: [410.0]}, FUSED)
    figures = {"rows": [row._asdict() for row in rows], "baseline": FUSED}
    axes = chart.figure({"mlp": figures}, 1).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([1.0, chart.LONGEST, 0.4])
    written = [text.get_text() for text in axes.texts]
    assert written == ["1.00", "4.1 \N{RIGHTWARDS ARROW}", "0.40"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["mlp", "cnn", "gpt"])
def test_an_eager_step_costs_no_more_than_one_written_by_hand(case):
    eager = [c for c in EAGER if c.group in ("by hand", "fnloop")]
    result = steps.compare(PROBLEMS[case](), eager, rounds=100, seconds=0.02)
    ratios = {row.name: row.ratio for row in result.rows}
    assert ratios["fnloop, eager"] <= 1.05


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_whole_step_compiled_is_faster_than_any_loop(case, tmp_path):
    found = _measured(case, tmp_path, 30 if CASES[case]().overhead_bound else 10)
    noise = found["by hand, fused, again"].noise
    donated = found[DONATED].ratio
    if CASES[case]().overhead_bound:
        assert donated <= 0.55
        if LIGHTNING in found:
            assert donated / found[LIGHTNING].ratio <= 0.20
    else:
        assert donated <= 1.00 + noise
    if JAX in found:
        assert donated <= found[JAX].ratio + noise


def _measured(case, tmp_path, rounds):
    words = ["--case", case, "--threads", "1", "--rounds", str(rounds), "--results", str(tmp_path)]
    assert main(["step", *words]) == 0
    figures = load(tmp_path, list(MEASURED)).step[1][case]
    return {row["name"].removesuffix(" *"): Row(**row) for row in figures["rows"]}


@pytest.mark.slow
def test_compiled_and_donated_needs_no_more_memory_than_the_classic_loop(tmp_path):
    words = ["--contender", FUSED, "--contender", DONATED, "--results", str(tmp_path)]
    assert main(["memory", *words]) == 0
    found = load(tmp_path, list(MEASURED)).memory["wide"]
    assert found[DONATED]["peak"] <= found[FUSED]["peak"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_compiled_step_is_one_graph(case, tmp_path):
    words = ["--case", case, "--contender", DONATED, "--results", str(tmp_path)]
    assert main(["compile", *words]) == 0
    found = load(tmp_path, list(MEASURED)).compile[case][DONATED]
    assert (found["graphs"], found["later"]) == (1, 0)


@pytest.mark.slow
def test_run_costs_10_us_a_step_and_fit_with_everything_20():
    rows = {row.name: row for row in extras.compare(PROBLEMS["mlp"](), rounds=30)}
    assert rows["run, a list of batches"].extra - rows["for"].extra <= 10
    assert rows["fit, all with Aim"].extra <= 20
    assert rows["fit, all with JSONL"].extra <= 20
