import torch

from fnloop.store.staging import Staging
from fnloop.trees.equal import tree_equal
from fnloop.values.context import EMPTY
from fnloop.values.start import start


def state(scale=1.0, dtype=torch.float32):
    begun = start(torch.nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last), seed=0)
    params = {name: (p * scale).to(dtype) for name, p in begun.params.items()}
    return begun.replace(params=params, slots={"ema": dict(params)})


def test_a_copy_is_equal_and_has_memory_and_layout_of_its_own():
    given, staging = state(), Staging()
    for scale in (1.0, 2.0):
        given = state(scale)
        copy = staging.copy(given)
        assert tree_equal(copy, given)
        weight = copy.params["weight"]
        assert weight.stride() == given.params["weight"].stride()
        assert weight.data_ptr() != given.params["weight"].data_ptr()
        assert weight.data_ptr() != copy["ema"]["weight"].data_ptr()


def test_the_memory_is_that_of_the_copy_before():
    staging = Staging()
    places = [staging.copy(state(scale)).params["weight"].data_ptr() for scale in (1.0, 2.0, 3.0)]
    assert len(set(places)) == 1


def test_what_has_another_shape_or_dtype_gets_new_memory():
    staging = Staging()
    staging.copy(state())
    given = state(dtype=torch.float64)
    assert tree_equal(staging.copy(given), given)
    more = state().put("new", {"x": torch.ones(3)})
    assert tree_equal(staging.copy(more), more)


def test_the_context_is_left_out():
    assert Staging().copy(state().within(micro=3, scale=torch.ones(()))).context == EMPTY
