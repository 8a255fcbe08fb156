import os
import warnings

import pytest
import torch

import fnloop as fl
from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.load import load
from fnloop.store.manifest import read_manifest
from fnloop.store.save import save
from fnloop.transforms.plan import packed
from fnloop.trees.equal import tree_equal
from fnloop.trees.nodes import tree, tree_map
from fnloop.trees.paths import tree_items, tree_paths
from fnloop.values.cursor import Cursor
from fnloop.values.metrics import Mean
from fnloop.values.start import start


@tree
class Count:
    number: torch.Tensor


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(-0.0))


def mlp(seed=0, width=4):
    return start(
        lambda: torch.nn.Sequential(
            torch.nn.Linear(3, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 2)
        ),
        seed=seed,
    )


def moments(state, value):
    return {"adamw": {"mu": {name: p * value for name, p in state.params.items()}}}


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.lightning("M4")
def test_a_state_comes_back_to_the_bit(tmp_path, quiet):
    state = mlp(seed=1).replace(
        step=torch.tensor(7),
        cursor=Cursor(1, 2, 3).tensor(),
        slots={
            "ema": {"0.weight": torch.full((4, 3), -0.0)},
            "nested": ({"a": [torch.tensor(1), Count(torch.tensor(True))]}, torch.empty(0, 2)),
            "half": {"x": torch.tensor([float("nan"), 1.5], dtype=torch.bfloat16)},
            "a/b~c": {0: torch.tensor([2**62]), 10: torch.tensor(1.0), 9: torch.tensor(2.0)},
            "nothing": {},
            "none": None,
        },
    )
    like = tree_map(torch.zeros_like, state)
    loaded = load(save(state, tmp_path), like=like)
    assert tree_equal(loaded, state)
    assert list(loaded.params) == list(state.params) and list(loaded.slots) == list(state.slots)


@pytest.mark.lightning("Z4")
def test_tied_parameters_stay_one(tmp_path, quiet):
    state = start(Tied(), seed=0)
    path = save(state, tmp_path)
    assert [leaf for leaf in read_manifest(path)["leaves"] if leaf.startswith("params")] == [
        "params/embed.weight"
    ]
    loaded = load(path, like=start(Tied(), seed=1))
    assert tree_equal(loaded, state)
    module = loaded.skeleton.build(loaded.params, loaded.buffers)
    assert module.head.weight is module.embed.weight


def test_the_order_of_parameters_is_that_of_like(tmp_path):
    state = mlp()
    assert list(state.params) != sorted(state.params, reverse=True)
    like = state.replace(params=dict(sorted(state.params.items(), reverse=True)))
    assert list(load(save(state, tmp_path), like=like).params) == list(like.params)


def test_what_is_loaded_has_memory_of_its_own(tmp_path):
    state = mlp()
    path = save(state, tmp_path)
    loaded = load(path, like=state)
    (path / "state.safetensors").write_bytes(b"")
    assert tree_equal(loaded, state)
    assert not {p.data_ptr() for p in loaded.params.values()} & {
        p.data_ptr() for p in state.params.values()
    }


def test_a_folder_of_checkpoints_means_the_latest(tmp_path):
    state = mlp()
    for count in (1, 3, 2):
        save(state.replace(cursor=Cursor(0, count, count).tensor()), tmp_path)
    assert Cursor.of(load(tmp_path, like=state).cursor).count == 3


@pytest.mark.lightning("K10")
def test_fresh_memory_of_a_new_stage_survives(tmp_path, quiet):
    old = mlp(seed=1)
    like = mlp(seed=2).put("ema", {"0.weight": torch.full((4, 3), 9.0)})
    loaded = load(save(old, tmp_path), like=like)
    assert tree_equal(loaded.slots, like.slots) and tree_equal(loaded.params, old.params)


def test_a_missing_parameter_is_warned_of_and_kept(tmp_path):
    state = mlp(seed=1)
    fewer = state.replace(params={n: p for n, p in state.params.items() if n != "2.bias"})
    like = mlp(seed=2)
    with pytest.warns(UserWarning, match=r"lacks params/2\.bias: kept") as caught:
        loaded = load(save(fewer, tmp_path), like=like)
    assert len(caught) == 1
    assert torch.equal(loaded.params["2.bias"], like.params["2.bias"])
    assert torch.equal(loaded.params["0.bias"], state.params["0.bias"])


def test_slots_unknown_to_like_are_kept_as_dicts_by_path(tmp_path, quiet):
    state = (
        mlp()
        .put("every", {"loss": Mean(torch.tensor(6.0), torch.tensor(4))})
        .put("stop", (torch.tensor(1.0), [torch.tensor(2.0)]))
        .put("a/b", torch.tensor(3.0))
    )
    loaded = load(save(state, tmp_path), like=mlp(seed=3).put("every", {}))
    expected = {
        "every": {"loss": {"total": torch.tensor(6.0), "weight": torch.tensor(4)}},
        "stop": {"0": torch.tensor(1.0), "1": {"0": torch.tensor(2.0)}},
        "a/b": torch.tensor(3.0),
    }
    assert tree_equal(loaded.slots, expected)
    assert tree_paths(loaded.slots) == tree_paths(state.slots)


def test_a_slot_comes_back_with_its_structure_when_like_has_it(tmp_path):
    state = mlp().put("every", {"loss": Mean(torch.tensor(6.0), torch.tensor(4))})
    like = mlp().put("every", {"loss": Mean(torch.tensor(0.0), torch.tensor(0))})
    loaded = load(save(state, tmp_path), like=like)
    assert isinstance(loaded["every"]["loss"], Mean) and float(loaded["every"]["loss"]) == 1.5


def test_memory_without_a_place_in_a_slot_of_like_is_dropped_with_a_warning(tmp_path):
    state = mlp().put("update", {"adam": {"mu": torch.zeros(1)}, "scale": torch.tensor(1.0)})
    like = mlp().put("update", {"scale": torch.tensor(2.0)})
    with pytest.warns(UserWarning, match="they were dropped: slots/update/adam/mu"):
        loaded = load(save(state, tmp_path), like=like)
    assert tree_equal(loaded.slots, {"update": {"scale": torch.tensor(1.0)}})


def test_another_models_parameters_are_refused_or_dropped_with_their_memory(tmp_path, quiet):
    big, small = mlp(seed=1), start(torch.nn.Sequential(torch.nn.Linear(3, 4)), seed=2)
    path = save(big.put("update", moments(big, 2.0)), tmp_path)
    like = small.put("update", moments(small, 0.0))
    with pytest.raises(CheckpointError, match=r"has not: params/1\.weight, .* prune=True"):
        load(path, like=like)
    with pytest.warns(UserWarning, match=r"they were dropped: params/1\.weight"):
        loaded = load(path, like=like, prune=True)
    assert loaded.params.keys() == small.params.keys() == loaded["update"]["adamw"]["mu"].keys()
    assert torch.equal(loaded["update"]["adamw"]["mu"]["0.bias"], big.params["0.bias"] * 2)


@pytest.mark.lightning("K6")
def test_shapes_and_dtypes_that_differ_are_a_table(tmp_path):
    path = save(mlp(width=4), tmp_path)
    like = mlp(width=6)
    like = like.replace(params={**like.params, "2.bias": like.params["2.bias"].double()})
    with pytest.raises(CheckpointError) as caught:
        load(path, like=like)
    lines = [line.split() for line in str(caught.value).splitlines()]
    assert ["leaf", "checkpoint", "like"] in lines
    assert ["params/0.weight", "f32[4,3]", "f32[6,3]"] in lines
    assert ["params/2.bias", "f32[2]", "f64[2]"] in lines
    assert not any(line[0] == "step" for line in lines if line)


@pytest.mark.lightning("X6")
def test_only_a_part(tmp_path, quiet):
    state = mlp(seed=1).replace(step=torch.tensor(9)).put("ema", {"x": torch.tensor(1.0)})
    state = state.put("other", {"x": torch.tensor(1.0)})
    path, like = save(state, tmp_path), mlp(seed=2)

    more = like.replace(buffers={**like.buffers, "new": torch.zeros(1)})
    params = load(path, like=more, only="params")
    assert tree_equal(params, more.replace(params=state.params))

    both = load(path, like=like, only=("slots/ema", "buffers"))
    assert tree_equal(both, like.replace(buffers=state.buffers, slots={"ema": state["ema"]}))

    layer = load(path, like=like, only="params/0")
    expected = {n: (state if n.startswith("0.") else like).params[n] for n in like.params}
    assert tree_equal(layer, like.replace(params=expected))


def test_only_a_part_reads_no_other(tmp_path):
    path = save(mlp(seed=1).put("z", {"x": torch.arange(1000.0)}), tmp_path)
    file = path / "state.safetensors"
    damaged = bytearray(file.read_bytes())
    place = damaged.index(torch.arange(1000.0)[500:].numpy().tobytes())
    damaged[place] ^= 1
    file.write_bytes(damaged)
    load(path, like=mlp(), only="params")
    with pytest.raises(CheckpointError, match=r"state\.safetensors: .*'slots/z/x'"):
        load(path, like=mlp())


def test_only_a_part_that_is_not_there_is_an_error(tmp_path):
    path = save(mlp().put("ema", {"x": torch.tensor(1.0)}), tmp_path)
    with pytest.raises(CheckpointError, match=r"only='slots/em'.* has: buffers, .*slots/ema, step"):
        load(path, like=mlp(), only="slots/em")


def test_a_truncated_file_is_named(tmp_path):
    path = save(mlp(), tmp_path)
    os.truncate(path / "state.safetensors", (path / "state.safetensors").stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"step-00000000/state\.safetensors has .* truncated"):
        load(path, like=mlp())


def test_a_missing_file_is_named(tmp_path):
    path = save(mlp(), tmp_path)
    (path / "state.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"state\.safetensors cannot be read: No such file"):
        load(path, like=mlp())


def test_tensors_of_another_checkpoint_are_noticed(tmp_path):
    first, second = save(mlp(seed=1), tmp_path / "a"), save(mlp(seed=2), tmp_path / "b")
    os.replace(second / "state.safetensors", first / "state.safetensors")
    with pytest.raises(CheckpointError, match="sha256 differs"):
        load(first, like=mlp())


@pytest.mark.lightning("K5", "D8")
def test_a_pickle_is_never_run(tmp_path):
    path = save(mlp(), tmp_path)

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "marker"),)

    torch.save(Bomb(), path / "state.safetensors")
    with pytest.raises(CheckpointError):
        load(path, like=mlp())
    torch.save(Bomb(), path / "manifest.json")
    with pytest.raises(CheckpointError):
        load(path, like=mlp())
    assert not (tmp_path / "marker").exists()


def test_like_must_be_a_state(tmp_path):
    path = save(mlp(), tmp_path)
    with pytest.raises(TypeError, match=r"\(like=\.\.\.\) takes a state, got a Linear"):
        load(path, like=torch.nn.Linear(1, 1))


@pytest.mark.lightning("T1")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_land_on_the_devices_of_like(tmp_path):
    state = mlp(seed=1).put("new", {"x": torch.tensor(1.0)})
    loaded = load(save(state, tmp_path), like=mlp(seed=2).to("cuda"))
    assert loaded.params["0.weight"].is_cuda and loaded["new"]["x"].is_cuda
    assert not loaded.cursor.is_cuda
    assert tree_equal(loaded.to("cpu"), state)


def test_the_memory_layout_is_that_of_like(tmp_path):
    model = torch.nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    state = start(model)
    loaded = load(save(state, tmp_path), like=state)
    assert loaded.params["weight"].stride() == state.params["weight"].stride() != (36, 9, 3, 1)
    assert loaded == state


def test_pruning_drops_slots_that_like_lacks_too(tmp_path):
    path = save(mlp().put("ema", {"x": torch.tensor(1.0)}), tmp_path)
    with pytest.warns(UserWarning, match="they were dropped: slots/ema/x"):
        assert load(path, like=mlp(), prune=True).slots == {}


def ema_of(state):
    return {name: p.clone() for name, p in state.params.items()}


@pytest.mark.parametrize("only", [None, "params", "params/0"])
def test_a_fresh_average_begins_with_the_parameters_that_are_loaded(tmp_path, only):
    path = save(mlp(seed=1), tmp_path)
    like = mlp(seed=2)
    like = like.put("ema", ema_of(like)).put("update", moments(like, 0.0))
    loaded = load(path, like=like, only=only)
    assert not tree_equal(loaded.params, like.params)
    assert tree_equal(loaded["ema"], dict(loaded.params))
    assert tree_equal(loaded["update"], like["update"])


def test_an_average_that_was_saved_or_has_moved_is_left_as_it_is(tmp_path):
    saved = mlp(seed=1)
    path = save(saved.put("ema", {n: p * 3 for n, p in saved.params.items()}), tmp_path)
    like = mlp(seed=2)
    assert tree_equal(
        load(path, like=like.put("ema", ema_of(like)))["ema"]["0.bias"], saved.params["0.bias"] * 3
    )
    moved = {n: p * 2 for n, p in like.params.items()}
    assert tree_equal(load(path, like=like.put("ema", moved), only="params")["ema"], moved)


def test_pruning_keeps_what_like_has_in_another_shape(tmp_path):
    old = mlp(seed=1)
    other = start(
        lambda: torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 9)
        ),
        seed=2,
    )
    path = save(old.put("update", moments(old, 2.0)), tmp_path)
    with pytest.raises(CheckpointError, match="prune=True"):
        load(path, like=other, only="params")
    with pytest.warns(UserWarning, match=r"were not loaded:\n.*\nparams/2") as caught:
        loaded = load(path, like=other.put("update", moments(other, 0.0)), prune=True)
    assert len(caught) == 1
    assert torch.equal(loaded.params["0.weight"], old.params["0.weight"])
    assert torch.equal(loaded.params["2.weight"], other.params["2.weight"])
    assert torch.equal(loaded["update"]["adamw"]["mu"]["0.bias"], old.params["0.bias"] * 2)


def test_nothing_is_no_part(tmp_path):
    with pytest.raises(ValueError, match="load nothing"):
        load(save(mlp(), tmp_path), like=mlp(), only=())


def damage(path, file="state.safetensors", at=-1):
    data = bytearray((path / file).read_bytes())
    data[at] ^= 1
    (path / file).write_bytes(data)


def test_a_damaged_checkpoint_is_skipped_and_the_reason_told(tmp_path):
    states = {n: mlp(seed=n).replace(cursor=Cursor(0, n, n).tensor()) for n in (1, 2, 3)}
    paths = {n: save(state, tmp_path) for n, state in states.items()}
    damage(paths[3])
    damage(paths[2], "manifest.json", at=400)
    with pytest.warns(UserWarning) as caught:
        assert load(tmp_path, like=mlp()) == states[1]
    told = [str(warning.message) for warning in caught]
    assert len(told) == 2
    assert "step-00000003 was skipped" in told[0] and "their sha256 differs" in told[0]
    assert "step-00000002 was skipped" in told[1] and "its own digest" in told[1]


def test_where_all_are_damaged_that_is_an_error_with_each_reason(tmp_path):
    for n in (1, 2):
        damage(save(mlp().replace(cursor=Cursor(0, n, n).tensor()), tmp_path))
    with pytest.raises(CheckpointError, match=r"is whole:\n.*step-00000002: .*\n.*step-00000001: "):
        load(tmp_path, like=mlp())


def test_a_checkpoint_that_does_not_fit_is_not_skipped(tmp_path):
    save(mlp().replace(cursor=Cursor(0, 1, 1).tensor()), tmp_path)
    save(mlp(width=6).replace(cursor=Cursor(0, 2, 2).tensor()), tmp_path)
    with pytest.raises(CheckpointError, match="does not fit"):
        load(tmp_path, like=mlp())


def trained(step, seed=0):
    model = torch.nn.Sequential(*[torch.nn.Linear(3, 3) for _ in range(3)], torch.nn.Dropout(0.5))
    state = step.init(model, seed=seed)
    for _ in range(2):
        state, _ = step(state, torch.ones(4, 3))
    return state


def adamw_and_average():
    return fl.pipe(
        lambda m, b: m(b).square().mean(),
        fl.grad,
        fl.update(fl.optim.adamw(0.1)),
        fl.ema(0.5),
    )


@pytest.mark.parametrize("saved_packed", [False, True])
@pytest.mark.parametrize("like_packed", [False, True])
def test_the_layout_in_memory_is_not_in_the_file(tmp_path, quiet, saved_packed, like_packed):
    step = adamw_and_average()
    state, like = trained(step), step.init(trained(step, seed=1))
    plain = save(state, tmp_path / "plain") / "state.safetensors"
    path = save(packed(state) if saved_packed else state, tmp_path)
    assert (path / "state.safetensors").read_bytes() == plain.read_bytes()
    loaded = load(path, like=packed(like) if like_packed else like)
    assert repr(loaded.params.layout).startswith("Packed") == like_packed
    assert tree_equal(dict(tree_items(loaded)), dict(tree_items(state)))


def test_a_slot_that_like_lacks_gets_its_structure_from_the_stage(tmp_path, quiet):
    step = adamw_and_average()
    state = trained(step)
    begun = start(torch.nn.Sequential(*[torch.nn.Linear(3, 3) for _ in range(3)]))
    loaded = load(save(packed(state), tmp_path), like=begun)
    assert type(loaded["ema"]) is dict and tree_equal(loaded["ema"], dict(state["ema"]))
    assert tree_equal(step.init(loaded).slots, state.slots)


def test_complex_parameters_are_saved_as_what_they_are(tmp_path, quiet):
    class Turn(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.angle = torch.nn.Parameter(torch.tensor([1 + 2j, -0.0j]))
            self.size = torch.nn.Parameter(torch.ones(2))

        def forward(self, x):
            return (self.angle * x).abs() * self.size

    step = adamw_and_average()
    state, _ = step(step.init(Turn()), torch.ones(2))
    path = save(packed(state), tmp_path)
    leaves = read_manifest(path)["leaves"]
    assert leaves["params/angle"]["dtype"] == "complex64"
    assert tree_equal(load(path, like=step.init(Turn())), state)


def test_none_in_place_of_a_path(tmp_path):
    with pytest.raises(CheckpointError, match=r"got None: fl\.best and fl\.latest give None"):
        load(fl.best(tmp_path), like=start(torch.nn.Linear(2, 1), seed=0))
