import torch

from fnloop.store.fresh import refreshed
from fnloop.trees.equal import tree_equal
from fnloop.values.start import start


def state(seed):
    return start(lambda: torch.nn.Linear(2, 3), seed=seed)


def begun(like, loaded, memory):
    return refreshed(like.put("a", memory), loaded, ["a"])["a"]


def test_copies_of_the_parameters_become_copies_of_the_loaded_ones():
    like, loaded = state(1), state(2)
    memory = {name: p.double() for name, p in like.params.items()}
    fresh = begun(like, loaded, memory)
    assert tree_equal(fresh, {name: p.double() for name, p in loaded.params.items()})
    nested = begun(like, loaded, {"older": {"params": dict(like.params)}, "since": torch.zeros(())})
    assert tree_equal(nested["older"]["params"], dict(loaded.params))


def test_memory_that_is_anything_else_is_left_alone():
    like, loaded = state(1), state(2)
    for memory in (
        {name: p * 2 for name, p in like.params.items()},
        {"mu": {name: torch.zeros_like(p) for name, p in like.params.items()}},
        {},
        torch.ones(2),
    ):
        assert tree_equal(begun(like, loaded, memory), memory)


def test_zeros_of_an_optimizer_are_not_copies_of_parameters_that_are_zero():
    like, loaded = state(1), state(2)
    like = like.replace(params={name: torch.zeros_like(p) for name, p in like.params.items()})
    memory = {"mu": {name: torch.zeros_like(p) for name, p in like.params.items()}}
    assert tree_equal(begun(like, loaded, memory), memory)
