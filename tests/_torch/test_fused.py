from __future__ import annotations

import torch

from fnloop._torch import fused

P = {"w": torch.ones(2), "b": torch.ones(3)}


def test_usable_where_the_kernels_are():
    assert fused.usable(P, P, 0.1, 0.9)
    assert fused.usable(P, P, torch.tensor(0.1), torch.tensor(0.9))
    double = {name: p.double() for name, p in P.items()}
    assert fused.usable(double, double, 0.1)


def test_not_usable_elsewhere():
    half = {name: p.bfloat16() for name, p in P.items()}
    recorded = {name: p.clone().requires_grad_() for name, p in P.items()}
    assert not fused.usable(P, half, 0.1)
    assert not fused.usable(P, {**P, "b": P["b"].double()}, 0.1)
    assert not fused.usable(recorded, P, 0.1)
    assert not fused.usable(P, P, torch.tensor(0.1, requires_grad=True))
    assert not fused.usable({}, {}, 0.1)
    with torch.no_grad():
        assert fused.usable(recorded, P, torch.tensor(0.1, requires_grad=True))
    seen = []
    torch.func.vmap(lambda x: seen.append(fused.usable(P, P, 0.1)) or x)(torch.ones(2))
    assert seen == [False]


def test_copies_are_fresh_and_in_groups():
    first, second = fused.copies(P, {name: torch.zeros_like(p) for name, p in P.items()})
    assert [t.shape for t in first] == [t.shape for t in second] == [(2,), (3,)]
    assert first[0].data_ptr() != P["w"].data_ptr()


def test_the_flag_stops_every_kernel():
    flag = fused.found_inf(torch.tensor(False))
    assert flag.item() == 1.0 and fused.found_inf(torch.tensor(True)).item() == 0.0
    assert fused.found_inf(True) is None
    bad, one = [torch.tensor([torch.nan])], torch.tensor(1.0)
    for run in (
        lambda p, m: fused.sgd_(
            p, bad, m[:1], weight_decay=0.1, momentum=0.9, lr=0.1, dampening=0.0, nesterov=False,
            maximize=False, is_first_step=False, grad_scale=None, found_inf=flag,
        ),
        lambda p, m: fused.adagrad_(
            p, bad, m[:1], [one], lr=0.1, lr_decay=0.0, weight_decay=0.0, eps=1e-8, maximize=False,
            grad_scale=None, found_inf=flag,
        ),
        *(
            lambda p, m, kernel=kernel: kernel(
                p, bad, m[:1], m[1:], [], [one], lr=0.1, beta1=0.9, beta2=0.9, weight_decay=0.1,
                eps=1e-8, amsgrad=False, maximize=False, grad_scale=None, found_inf=flag,
            )
            for kernel in (fused.adam_, fused.adamw_)
        ),
    ):  # fmt: skip
        p, m = [torch.tensor([2.0])], [torch.tensor([3.0]), torch.tensor([4.0])]
        run(p, m)
        assert [t.item() for t in (*p, *m)] == [2.0, 3.0, 4.0]


def test_counted():
    count = torch.tensor(2.0)
    assert fused.counted(count, True).item() == 3.0
    assert fused.counted(count, torch.tensor(True)).item() == 3.0
    assert fused.counted(count, torch.tensor(False)).item() == 2.0
    assert fused.counted(count, torch.tensor(False)).dtype == torch.float32
