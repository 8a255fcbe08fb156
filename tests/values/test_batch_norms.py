"""The formula of batch norms over ranks, on a mesh of one; `tests/distributed` has the ranks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fnloop.distributed.mesh import Mesh
from fnloop.values.batch_norms import BatchNorms, refuse_own_synchronization


def given(shape, dtype=torch.float64):
    """Arguments of `F.batch_norm`: input, statistics, weight and bias."""
    g = torch.Generator().manual_seed(0)
    x = (3 + torch.randn(shape, generator=g)).to(dtype)
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    wide = torch.promote_types(dtype, torch.float32)
    affine = [torch.randn(shape[1], generator=g).to(wide).requires_grad_() for _ in range(2)]
    statistics = torch.zeros(shape[1], dtype=wide), torch.ones(shape[1], dtype=wide)
    return [x.requires_grad_(), *statistics, *affine]


def computed(arguments):
    """What is computed, its statistics and gradients, over the ranks of a mesh of one."""
    with BatchNorms(Mesh()).running(None, True):
        return found(arguments)


def found(arguments):
    """What is computed, its statistics and gradients."""
    out = F.batch_norm(*arguments, training=True, momentum=0.3)
    needed = [t for t in arguments if t is not None and t.requires_grad]
    seed = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    return [out, *arguments[1:3], *torch.autograd.grad(out, needed, seed)]


def assert_equal(one, other, atol):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3), (6, 4, 3, 2), (2, 4, 3, 2, 2)])
@pytest.mark.parametrize(
    ("dtype", "atol"),
    [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 4e-2), (torch.float16, 4e-3)],
)
def test_one_rank_computes_the_usual_norm(shape, dtype, atol):
    one, other = found(given(shape, dtype)), computed(given(shape, dtype))
    assert_equal(one, other, atol)
    assert one[0].stride() == other[0].stride()


def test_parts_may_be_missing():
    for missing in ((1, 2), (3, 4), (1, 2, 3, 4), (4,)):
        arguments = [None if i in missing else t for i, t in enumerate(given((6, 4, 3)))]
        again = [None if i in missing else t for i, t in enumerate(given((6, 4, 3)))]
        assert_equal(found(arguments), computed(again), 1e-13)


def test_gradients_agree_with_finite_differences():
    x, _, _, weight, bias = given((5, 3, 2))
    with BatchNorms(Mesh()).running(None, True):
        assert torch.autograd.gradcheck(
            lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), (x, weight, bias)
        )


def test_given_statistics_are_used_as_ever():
    x, mean, var, weight, bias = given((6, 4))
    with BatchNorms(Mesh()).running(None, True):
        out = F.batch_norm(x, mean, var, weight, bias)
    assert torch.equal(out, F.batch_norm(x, mean, var, weight, bias))


def test_other_norms_are_left_alone():
    x = given((6, 4, 3))[0]
    for norm in (nn.GroupNorm(2, 4), nn.LayerNorm(3), nn.InstanceNorm1d(4)):
        norm.double()
        with BatchNorms(Mesh()).running(norm, True):
            out = norm(x)
        assert torch.equal(out, norm(x))


def test_the_buffers_that_were_written_to_are_known():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False))
    norms = BatchNorms(Mesh())
    with norms.running(model, True):
        model(torch.randn(5, 4))
    norms.note(dict(model.named_buffers()))
    assert norms.names == ("0.running_mean", "0.running_var")


def test_layers_that_synchronize_by_themselves_are_as_before_afterwards():
    model = nn.Sequential(nn.SyncBatchNorm(4))
    before = dict(model[0].__dict__)
    with BatchNorms(Mesh()).running(model, True):
        model(torch.randn(5, 4))
    assert model[0].__dict__ == before
    with pytest.raises(ValueError, match=r"'0' is an nn.SyncBatchNorm.*sync_batchnorm=True"):
        refuse_own_synchronization(model)
    refuse_own_synchronization(nn.Sequential(nn.BatchNorm1d(4)))


def test_one_value_per_channel_is_refused_as_ever():
    for run in (found, computed):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            run(given((1, 4)))
