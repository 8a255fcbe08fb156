"""Checkpoints that were made to do harm: refused, quickly, with little memory; nothing is run."""

from __future__ import annotations

import ast
import copy
import json
import os
import random
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import fnloop as fl
from fnloop.cli.app import main
from fnloop.store.commit import discard, sweep
from fnloop.store.files import Disk
from fnloop.store.folders import listing
from fnloop.store.manifest import amend

from . import by_hand, hostile
from .by_hand import Array

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ONE = hostile.ONE
forked = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What every reader made of every checkpoint of the corpus."""
    root = tmp_path_factory.mktemp("corpus")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", str(HERE / "hostile.py"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not done.stderr, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    shutil.rmtree(root)
    return {row["name"]: row for row in rows}


@forked
@pytest.mark.parametrize("name", hostile.CORPUS)
def test_each_hostile_checkpoint_is_refused(seen, name):
    found, case = seen[name], hostile.CORPUS[name]
    if "skipped" in found:
        pytest.skip(found["skipped"])
    for reader, outcome in found["outcomes"].items():
        assert not outcome.startswith("crashed"), (reader, outcome)
        if reader in case.readers:
            assert outcome.startswith("refused: "), (reader, outcome)
            said = outcome.removeprefix("refused: ")
            assert 20 < len(said) < 3000 and "Traceback" not in said, (reader, said[:3000])
            assert "\x1b" not in said and "\u202e" not in said
    assert found["seen"] == [], "something was imported, run, or opened elsewhere"
    assert max(found["seconds"].values()) < 1, found["seconds"]
    # What Python and torch take for any checkpoint depends on their versions.
    assert found["memory"] - seen["honest"]["memory"] < case.memory, "MB"


@forked
def test_the_corpus_is_whole_and_the_honest_checkpoint_is_accepted_by_all(seen):
    assert len(hostile.CORPUS) >= 150
    assert seen.keys() == {"honest", *hostile.CORPUS}, "the marker would be here, had code run"
    assert set(seen["honest"]["outcomes"].values()) == {"accepted"}
    assert seen["honest"]["seen"] == []


@forked
def test_the_payloads_and_the_watch_would_work(tmp_path):
    """Or else the tests above could not fail."""
    script = f"""
import os, pickle, sys
sys.path[:0] = [{str(HERE)!r}]
import hostile
from pathlib import Path
file = Path({str(tmp_path / "in" / "x")!r})
file.parent.mkdir()
hostile.put_pickle(file)
sys.addaudithook(hostile._hook)
hostile._watched["root"] = {str(tmp_path)!r}
pickle.loads(file.read_bytes())
eval("1")
open("/etc/hostname").close()
hostile._watched["root"] = None
print([event.split()[0] for event in hostile._watched["seen"]])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (tmp_path / hostile.MARKER).exists(), done.stderr
    for event in ("pickle.find_class", "os.system", "exec", "open"):
        assert f"'{event}'" in done.stdout, done.stdout


# Every entry, and every wrong type

WRONG = {
    "null": None,
    "[]": [],
    "{}": {},
    "text": "x",
    "-1": -1,
    "1.5": 1.5,
    "true": True,
}
RIGHT = {  # which of them an entry may be
    **{name: {"text"} for name in ("fnloop", "torch", "python", "device", "model", "status")},
    **{name: {"-1", "[]"} for name in ("step", "key")},
    **{name: {"{}"} for name in ("metrics", "config", "data", "memos", "structure")},
    "pipeline": {"null", "text"},
    "monitor": {"null"},
}


def put(folder, manifest):
    (folder / "manifest.json").write_bytes(by_hand.manifest_bytes(manifest))


def refused(call):
    try:
        call()
    except fl.errors.CheckpointError:
        return True
    return False


@pytest.mark.parametrize("entry", by_hand.manifest_of(hostile.arrays()))
def test_each_entry_is_refused_where_it_is_missing_or_of_another_type(tmp_path, entry):
    folder, like = hostile.honest(tmp_path), hostile.state()
    manifest = by_hand.manifest_of(hostile.arrays())
    assert not refused(lambda: fl.load(folder, like=like))
    for name, value in WRONG.items():
        put(folder, {**manifest, entry: value})
        right = name in RIGHT.get(entry, ())
        assert refused(lambda: fl.load(folder, like=like)) is not right, name
    put(folder, {name: value for name, value in manifest.items() if name != entry})
    assert refused(lambda: fl.store.read_manifest(folder))


@pytest.mark.parametrize(
    ("parent", "right"),
    [
        ("cursor", {}),
        ("monitor", {"name": {"text"}, "value": {"-1", "1.5"}}),
        ("leaf", {}),
        ("metrics", {"loss": {"-1", "1.5"}}),
        ("structure", {"slots": {"text"}}),
    ],
)
def test_each_part_of_an_entry_is_refused_where_it_is_missing_or_of_another_type(
    tmp_path, parent, right
):
    folder, like = hostile.honest(tmp_path), hostile.state()

    def manifest():
        whole = by_hand.manifest_of(hostile.arrays(), monitor=dict(hostile.MONITOR))
        whole["metrics"], whole["structure"] = {"loss": 0.5}, {"slots": "dict"}
        return whole, whole["leaves"]["params/weight"] if parent == "leaf" else whole[parent]

    for part in manifest()[1]:
        for name, value in WRONG.items():
            whole, entry = manifest()
            entry[part] = value
            put(folder, whole)
            is_right = name in right.get(part, ())
            assert refused(lambda: fl.load(folder, like=like)) is not is_right, (part, name)
        whole, entry = manifest()
        del entry[part]
        put(folder, whole)
        optional = parent in ("metrics", "structure")
        assert refused(lambda: fl.load(folder, like=like)) is not optional, part
    whole, entry = manifest()
    if parent in ("cursor", "monitor", "leaf"):
        entry["more"] = 1
        put(folder, whole)
        assert refused(lambda: fl.load(folder, like=like))


# Random changes, rightly signed

VALUES = [
    *WRONG.values(),
    0,
    1,
    2**63 - 1,
    2**63,
    -0.0,
    1e308,
    "",
    "nan",
    "../x",
    "\ud800",
    "params/weight",
    "float32",
    "0" * 64,
    [[]],
    [1, 2],
    {"$int": "9" * 30},
    {"$float": "nan"},
    {"$float": "x"},
    {"": {}},
    [0] * 70,
]


def places(value, path=()):
    yield path
    if isinstance(value, (dict, list)):
        for name in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[name], (*path, name))


def mutated(manifest, rng):
    """A copy in which one to three places were replaced, deleted, renamed, doubled or moved."""
    manifest = copy.deepcopy(manifest)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice([path for path in places(manifest) if path] or [()])
        if not path:
            break
        parent = manifest
        for name in path[:-1]:
            parent = parent[name]
        kind, last = (
            rng.choice(["replace", "replace", "delete", "rename", "move", "wrap"]),
            path[-1],
        )
        if kind == "delete":
            del parent[last]
        elif kind == "rename" and isinstance(parent, dict):
            parent[rng.choice(["x", "", "step", "params/x", "slots/a/b", "a" * 2000])] = parent.pop(
                last
            )
        elif kind == "move":
            other = manifest
            for name in rng.choice([place for place in places(manifest) if place]):
                other = other[name]
            parent[last] = copy.deepcopy(other)
        elif kind == "wrap":
            parent[last] = copy.deepcopy(
                rng.choice([[parent[last]], {"a": parent[last]}, [parent[last]] * 40])
            )
        else:
            parent[last] = copy.deepcopy(rng.choice(VALUES))
    return manifest


def fuzz(tmp_path, count, seed, ranks=()):
    """Load so many changed manifests; of `ranks` along two axes, in pieces of slices."""
    rng = random.Random(seed)
    memory = {"slots/ema/weight": Array("bfloat16", (1, 2), bytes(4))}
    arrays = {**hostile.arrays(), **memory}
    about = {"monitor": dict(hostile.MONITOR), "memos": {"history": {"step": [1]}}}
    if ranks:
        dims = {path: 1 for path, array in arrays.items() if len(array.shape) == 2}
        folder = by_hand.write_pieces(tmp_path, arrays, *ranks, dims, **about)
    else:
        folder = by_hand.write(tmp_path, arrays, **about)
    manifest = json.loads(b"{" + (folder / "manifest.json").read_bytes()[79:])
    like = hostile.state()
    accepted = 0
    for _ in range(count):
        changed = mutated(manifest, rng)
        put(folder, changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for call in (
                lambda: fl.load(folder, like=like),
                lambda: fl.load(tmp_path, like=like),
                lambda: fl.latest(tmp_path),
                lambda: fl.best(tmp_path),
            ):
                try:
                    result = call()
                except fl.errors.CheckpointError as error:
                    assert len(str(error)) < 5000
                else:
                    accepted += isinstance(result, fl.State)
    return accepted


@pytest.mark.parametrize(("ranks", "count"), [((), 2_000), ((2, 2), 1_000)])
def test_manifests_changed_at_random_are_refused_or_loaded_and_never_crash(tmp_path, ranks, count):
    accepted = fuzz(tmp_path, count, seed=0, ranks=ranks)
    assert 0 < accepted < count, "most changes matter, some (of the model's text) do not"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
@pytest.mark.parametrize("ranks", [(), (2, 2)])
def test_many_manifests_changed_at_random_never_crash(tmp_path, seed, ranks):
    fuzz(tmp_path, 20_000, seed, ranks)


def test_manifests_whose_bytes_are_changed_at_random_never_crash(tmp_path):
    folder, like = hostile.honest(tmp_path), hostile.state()
    body = (folder / "manifest.json").read_bytes()[78:]
    rng = random.Random(0)
    pieces = [
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b"\\",
        b"1e9",
        b"-",
        b"null",
        b"\0",
        b"\xff",
    ]
    for _ in range(1_000):
        changed = bytearray(body)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(changed))
            changed[at : at + rng.randint(0, 8)] = rng.choice(pieces) * rng.randint(0, 3)
        (folder / "manifest.json").write_bytes(by_hand.signed(bytes(changed)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refused(lambda: fl.load(folder, like=like))


# What is odd, and decided


def test_hard_links_are_accepted_as_their_bytes_are_right(tmp_path):
    folder, like = hostile.honest(tmp_path), hostile.state()
    (tmp_path / "elsewhere").mkdir()
    for name in ("manifest.json", "state.safetensors"):
        os.link(folder / name, tmp_path / "elsewhere" / name)
    assert fl.load(tmp_path / "elsewhere", like=like) == fl.load(folder, like=like)


def test_a_link_to_a_checkpoint_is_followed_and_a_link_inside_one_is_not(tmp_path):
    folder, like = hostile.honest(tmp_path / "a"), hostile.state()
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / folder.name).symlink_to(folder)
    for place in (tmp_path / "link", tmp_path / "run", fl.latest(tmp_path / "run")):
        assert fl.load(place, like=like).cursor.tolist() == [0, 3, 3]
    hostile.put_link(folder / "state.safetensors")
    assert refused(lambda: fl.load(tmp_path / "link", like=like))


@pytest.mark.parametrize("name", ["step-00000003", ".step-00000003.old", ".step-00000003.tmp-ab"])
def test_what_a_link_points_to_is_never_deleted(tmp_path, name):
    """A run folder from elsewhere may hold a link; tidying up deletes the link alone."""
    precious = hostile.honest(tmp_path / "precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(precious)
    sweep(tmp_path / "run", Disk())
    discard(tmp_path / "run" / "step-00000003", Disk())
    assert sorted(file.name for file in precious.iterdir()) == [
        "manifest.json",
        "state.safetensors",
    ]
    assert list((tmp_path / "run").iterdir()) == []


def test_names_of_leaves_never_become_names_of_files(tmp_path):
    """So names that a file system takes for the same do not collide."""
    leaves = {
        f"slots/a/{name}": Array("float32", (), ONE) for name in ("x", "X", "CON", "a:b", "é")
    }
    folder = by_hand.write(tmp_path, {**hostile.arrays(), **leaves})
    loaded = fl.load(folder, like=hostile.state())
    assert {*loaded["a"]} == {"x", "X", "CON", "a:b", "é"}
    assert len(list(folder.iterdir())) == 2


def test_text_that_names_code_is_text(tmp_path):
    """Nothing is imported by name, whatever the manifest says."""
    evil = "os.system('touch marker')"
    folder = by_hand.write(
        tmp_path,
        hostile.arrays(),
        model=evil,
        pipeline=evil,
        status=evil,
        config={"class_path": "os.system", "__reduce__": ["os.system", ["touch marker"]]},
        structure={"slots/a": "os.system"},
        memos={"os.system": evil},
        data={"position": {"py/object": "os.system"}},
        unknown={"!!python/object/apply:os.system": ["touch marker"]},
    )
    state = fl.load(folder, like=hostile.state())
    assert state.cursor.tolist() == [0, 3, 3] and not Path("marker").exists()
    assert fl.store.read_manifest(folder)["model"] == evil


def test_a_bool_is_0_or_1_whatever_its_byte_is(tmp_path):
    leaf = {"slots/a": Array("bool", (4,), bytes([0, 1, 2, 255]))}
    loaded = fl.load(by_hand.write(tmp_path, {**hostile.arrays(), **leaf}), like=hostile.state())
    assert loaded["a"].view(torch.uint8).tolist() == [0, 1, 1, 1]


def test_slots_that_nobody_asked_for_may_be_large_but_not_beyond_all_proportion(tmp_path):
    size = 300 * 2**20
    arrays = {**hostile.arrays(), "slots/a/big": Array("uint8", (size,), bytes(size))}
    folder = by_hand.write(tmp_path, arrays)
    with pytest.raises(fl.errors.CheckpointError, match=r"has 314\.6 MB in slots .* \(slots/a\)"):
        fl.load(folder, like=hostile.state())
    assert fl.load(folder, like=hostile.state(), only="params").cursor.tolist() == [0, 0, 0]
    with pytest.warns(UserWarning, match="slots/a/big"):
        fl.load(folder, like=hostile.state(), prune=True)
    like = hostile.state().put("a", {"big": torch.zeros(size, dtype=torch.uint8)})
    assert fl.load(folder, like=like)["a"]["big"].numel() == size


def test_a_folder_whose_name_is_no_count_is_no_checkpoint_of_a_run(tmp_path, recwarn):
    """Names are compared as text, so two names never mean one count."""
    folder = hostile.honest(tmp_path)
    for name in (
        "step-3",
        "step-000000003",
        "step-0000000\u0663",
        "step-00000003 ",
        "Step-00000003",
    ):
        shutil.copytree(folder, tmp_path / name)
    shutil.copytree(folder, tmp_path / ("step-" + "9" * 200))
    assert listing(tmp_path) == {3: folder}
    assert fl.latest(tmp_path) == folder and not recwarn.list


# What effects remember

TOP = {"monitor": None, "mode": "min", "best": [], "recent": [], "unneeded": []}
MEMOS = [
    None,
    [],
    {},
    "x",
    -1,
    1.5,
    True,
    [[]],
    [{}],
    [5],
    {"step": 1},
    {"step": [[]], "epoch": [None]},
    {"step": [1], "epoch": []},
    {"step": [1], "epoch": [1], "loss": ["x"]},
    {"step": [1], "epoch": [1], "loss": [2**2000]},
    {**TOP, "best": [[1, 2, 3]]},
    {**TOP, "best": [["1", 0.5]]},
    {**TOP, "best": [[2**70, 0.5]]},
    {**TOP, "recent": ["x"]},
    {**TOP, "recent": [1.5]},
    {**TOP, "unneeded": ["../x"]},
    {**TOP, "unneeded": [-1]},
    {**TOP, "unneeded": "ab"},
    {**TOP, "recent": None},
]


def run(folder, steps, resume=None):
    step = fl.pipe(lambda m, b: m(b).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    callbacks = [
        fl.checkpoint(folder / "saved"),
        fl.track(fl.trackers.JSONL(folder / "runs" / "a.jsonl")),
    ]
    data = [torch.ones(2, 2)]
    return fl.fit(
        step,
        step.init(torch.nn.Linear(2, 1)),
        data,
        steps=steps,
        callbacks=callbacks,
        resume=resume,
    )


@pytest.mark.parametrize("effect", ["history", "checkpoint", "track"])
def test_memos_that_are_none_are_a_clear_error(tmp_path, effect):
    run(tmp_path / "whole", 1)
    refusals = 0
    for number, memo in enumerate(MEMOS):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        path = fl.latest(folder / "saved")
        memos = fl.store.read_manifest(path)["memos"]
        assert effect in memos
        amend(path, Disk(), memos={**memos, effect: memo})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                run(folder, 2, resume=folder / "saved")
            except fl.errors.CheckpointError as error:
                assert f"a memo for the effect {effect!r}" in str(error)
                refusals += 1
        assert {file.name for file in folder.iterdir()} == {"saved", "runs"}
    assert refusals >= len(MEMOS) - 4


@pytest.mark.parametrize("run_id", ["../../x", "/x", "x/y", "..", "", "a\0b", 5, [], None])
def test_the_id_of_a_run_leads_to_no_other_place(tmp_path, run_id):
    effect = fl.track(fl.trackers.JSONL(tmp_path / "a.jsonl"))
    effect.recall({**effect.memo(), "runs": [{"tracker": "JSONL", "run": run_id}]})
    assert effect._runs == [None], "a run of its own"


def test_what_is_shown_cannot_control_the_terminal(tmp_path, capsys):
    evil = "a\x1b[2J\u202eb\rc"
    arrays = hostile.arrays()
    folder = by_hand.write(tmp_path, arrays, model=evil, status=evil, config={"x": evil, evil: 1})
    other = by_hand.write(tmp_path / "other", arrays)
    assert main(["show", str(folder)]) == 0 and main(["diff", str(folder), str(other)]) == 0
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isprintable() and "\\x1b[2J" in printed


# Static rules

BANNED = re.compile(
    r"\b(pickle|cPickle|dill|cloudpickle|marshal|shelve|torch\.load|eval|exec|__import__|importlib"
    r"|import_module|yaml|subprocess|os\.system)\b"
)
READING = [
    *sorted((ROOT / "fnloop" / "store").glob("*.py")),
    ROOT / "fnloop" / "cli" / "show_command.py",
    ROOT / "fnloop" / "cli" / "diff_command.py",
]


@pytest.mark.parametrize("file", READING, ids=lambda file: file.name)
def test_nothing_that_reads_checkpoints_can_run_or_import_what_is_in_them(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):  # docstrings may say the words
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            node.body[0] = ast.Pass()
    found = set(BANNED.findall(ast.unparse(tree)))  # which drops comments
    if file.name in ("state_dict.py", "external_weights.py"):  # weights of others, and weights only
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        loads = [call for call in calls if ast.unparse(call.func) == "torch.load"]
        assert all("weights_only=True" in ast.unparse(call) for call in loads)
        found -= {"torch.load", "pickle"}
    assert not found
