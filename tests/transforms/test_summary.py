"""`fl.summary`: against closed forms and published figures, and what it leaves alone."""

from __future__ import annotations

import collections
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import fnloop as fl
from tests.laws.test_compiled import STAGES, arrays, make


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def step_of(function=loss, optimizer=None):
    return fl.pipe(function, fl.grad, fl.update(optimizer or fl.optim.sgd(0.1)))


def of(model, batch, function=loss, **arguments):
    step = step_of(function)
    return fl.summary(step, step.init(model), batch, **arguments)


def rows(told):
    return {row.path: row for row in told.modules}


def digits(n=6):
    return torch.zeros(n, 8), torch.zeros(n, dtype=torch.long)


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 4))


@pytest.mark.lightning("T23", "C8")
@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_told_within_80_columns_and_nothing_changes(name):
    step = STAGES[name]
    state = step.init(make())
    before, generator = fl.tree_map(torch.clone, state), torch.get_rng_state()
    told = fl.summary(step, state, arrays(7))
    assert fl.tree_equal(before, state) and torch.equal(generator, torch.get_rng_state())
    assert max(map(len, str(told).splitlines())) <= 80
    slots = {row.slot: row.bytes for row in told.stages if row.slot}
    assert slots.keys() == state.slots.keys()
    assert told.state == sum(leaf.nbytes for leaf in fl.tree_leaves(state))
    assert step.script()[-1].split("(")[0] in told.stages[-1].text
    assert told.flops.forward >= 2 * 7 * (36 + 36 + 18)


@pytest.mark.lightning("C8", "Z3")
def test_operations_of_a_perceptron_are_those_of_its_products():
    told = of(mlp(), digits())
    first, last = 2 * 6 * 8 * 16, 2 * 6 * 16 * 4
    # No gradient of the input is computed.
    assert told.flops == (first + last, first + 2 * last, 0)
    assert told.flops.step == 2 * first + 3 * last
    assert [row.flops for row in told.modules] == [first + last, first, 0, 0, last]
    assert [row.parameters for row in told.modules] == [244, 144, 32, 0, 68]
    assert rows(told)["1"].bytes == 4 * (32 + 32) + 8
    assert rows(told)["0"].output == "f32[6,16]"


@pytest.mark.lightning("C8")
@pytest.mark.parametrize(
    ("layer", "shape", "forward"),
    [
        (nn.Conv2d(8, 12, 3), (2, 8, 9, 9), 2 * 2 * 49 * 12 * 8 * 9),
        (nn.Conv2d(8, 8, 3, groups=8), (2, 8, 9, 9), 2 * 2 * 49 * 8 * 9),
        (nn.ConvTranspose1d(8, 12, 3, groups=2), (2, 8, 9), 2 * 2 * 9 * 8 * 6 * 3),
        (nn.LSTM(8, 16, batch_first=True), (2, 5, 8), 2 * 2 * 5 * 4 * 16 * (8 + 16)),
        (nn.GRU(8, 16, batch_first=True), (2, 5, 8), 2 * 2 * 5 * 3 * 16 * (8 + 16)),
        (
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
            (2, 5, 16),
            2 * 2 * 5 * (4 * 16 * 16 + 2 * 16 * 32) + 4 * 2 * 5 * 5 * 16,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_operations_of_layers(layer, shape, forward):
    def mean(model, batch):
        out = model(batch)
        return (out[0] if isinstance(out, tuple) else out).square().mean()

    told = of(layer, torch.zeros(shape), mean)
    assert told.flops.forward == forward
    assert forward <= told.flops.backward <= 2.2 * forward


@pytest.mark.lightning("C8")
def test_a_residual_network_takes_what_is_published():
    """ResNet-18: 1.814 billion multiplications, 11,689,512 parameters (torchvision's table)."""

    class Block(nn.Module):
        def __init__(self, inner, outer, stride):
            super().__init__()
            self.a = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
            self.b = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
            self.n, self.m = nn.BatchNorm2d(outer), nn.BatchNorm2d(outer)
            self.down = None
            if stride > 1:
                short = nn.Conv2d(inner, outer, 1, stride, bias=False)
                self.down = nn.Sequential(short, nn.BatchNorm2d(outer))

        def forward(self, x):
            y = self.m(self.b(self.n(self.a(x)).relu()))
            return (y + (x if self.down is None else self.down(x))).relu()

    with torch.device("meta"):  # as large as any, and no memory is needed
        layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        layers.append(nn.MaxPool2d(3, 2, 1))
        for inner, outer in ((64, 64), (64, 128), (128, 256), (256, 512)):
            layers += [Block(inner, outer, 1 + (inner != outer)), Block(outer, outer, 1)]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)]
        model = nn.Sequential(*layers)
        batch = torch.zeros(2, 3, 224, 224), torch.zeros(2, dtype=torch.long)
    told = of(model, batch)
    assert told.sizes.parameters == told.sizes.trained == 11_689_512
    assert told.flops.forward / 2 / 2 / 1e9 == pytest.approx(1.814, abs=5e-4)


class Shared(nn.Module):
    """A module under two names that is called three times, tied weights, one that is not used."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.body = nn.Linear(8, 8)
        self.again = self.body
        self.parts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.Linear(3, 3)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)

    def encode(self, x):
        x = self.again(self.body(self.body(self.embed(x))))
        return {"x": self.frozen(self.parts[1](self.parts[0](x))), "size": len(x)}


def language(model, batch):
    x = model.encode(batch)["x"]  # the model itself is not called
    return F.cross_entropy(model.head(x).flatten(0, 1), batch.flatten())


@pytest.mark.lightning("C8", "Z4")
def test_what_is_there_twice_counts_once_and_what_is_called_thrice_thrice():
    told = of(Shared(), torch.zeros(2, 5, dtype=torch.long), language)
    found = rows(told)
    assert "again" not in found and found["body"].calls == 3 and "body x3" in str(told)
    each = 2 * 10 * 8 * 8
    assert found["body"].flops == 3 * each and found["parts"].flops == 2 * each
    assert found["parts"].calls == found[""].calls == 0 and found[""].output == ""
    assert told.flops.forward == found[""].flops == 6 * each + 2 * 10 * 8 * 50
    assert told.sizes.parameters == 400 + 4 * 72 + 12 and told.sizes.trained == 400 + 3 * 72 + 12
    assert found["head"].parameters == found["embed"].parameters == 400
    assert (found["unused"].calls, found["unused"].flops) == (0, 0)
    assert found["frozen"].trained == 0 and "none" in str(told)


def test_any_output_is_told_and_long_ones_are_cut():
    Pair = collections.namedtuple("Pair", "left right")

    class Model(nn.Linear):
        def forward(self, x):
            return Pair(super().forward(x), {"a": [x, None], "b": "text"})

    told = of(Model(8, 4), digits(), lambda m, b: F.cross_entropy(m(b[0]).left, b[1]))
    assert (
        rows(told)[""].output == "Pair(left=f32[6,4], right={'a': [f32[6,8], None], 'b': 'text'})"
    )
    assert "..." in str(told) and max(map(len, str(told).splitlines())) <= 80


def test_what_is_computed_again_is_of_the_backward_pass():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = mlp(), nn.Linear(4, 4)

        def forward(self, x):
            return self.head(checkpoint(self.body, x, use_reentrant=False))

    plain, again = of(nn.Sequential(mlp(), nn.Linear(4, 4)), digits()), of(Model(), digits())
    assert again.flops.forward == plain.flops.forward and rows(again)["body"].calls == 1
    # Not the last layer: nobody needs what it returned.
    assert again.flops.backward == plain.flops.backward + rows(again)["body.0"].flops


@fl.tree
class Perceptron:
    layers: list
    name: str = "a tree"

    def __call__(self, x):
        for weight in self.layers:
            x = (x @ weight).tanh()
        return x


def test_a_model_that_is_a_tree_has_paths_and_no_modules():
    told = of(Perceptron([torch.zeros(8, 16), torch.zeros(16, 4)]), digits())
    assert [(row.path, row.kind, row.parameters) for row in told.modules] == [
        ("", "Perceptron", 192),
        ("layers", "", 192),
        ("layers.0", "f32[8,16]", 128),
        ("layers.1", "f32[16,4]", 64),
    ]
    first, last = 2 * 6 * 8 * 16, 2 * 6 * 16 * 4
    assert told.flops == (first + last, first + 2 * last, 0)
    assert "output" not in str(told)


def test_wrapped_steps_are_told_as_what_they_are():
    step, batch = step_of(), digits()
    alone = fl.summary(step, step.init(mlp()), batch)
    fast = fl.compile(step, steps=2)
    told = fl.summary(fast, fast.init(mlp()), batch)
    assert told.stages[-1].text == "compile(steps=2)" and told.flops == alone.flops
    assert told.modules == alone.modules and fast.graphs == 0
    for mode in ("vmap", "loop"):
        many = fl.ensemble(step, 3, mode=mode)
        told = fl.summary(many, many.init(mlp), batch)
        assert told.flops == tuple(3 * each for each in alone.flops) and told.members == 3
        assert told.sizes == alone.sizes and "of each of 3 members" in str(told)
        assert rows(told)["0"].output == "f32[6,16]"
    four = fl.pipe(loss, fl.grad, fl.accumulate(3), fl.update(fl.optim.sgd(0.1)))
    told = fl.summary(four, four.init(mlp()), batch)
    assert told.flops == alone.flops and rows(told)["0"].calls == 3
    torchs = step_of(optimizer=fl.optim.from_torch(torch.optim.Adam, lr=0.1))
    assert fl.summary(torchs, torchs.init(mlp()), batch).flops == alone.flops


def test_a_function_is_a_step_too():
    inner = step_of()

    def twice(state, batch):
        return inner(inner(state, batch)[0], batch)

    state = inner.init(mlp())
    told = fl.summary(twice, state, digits())
    assert told.flops.step == 2 * fl.summary(inner, state, digits()).flops.step
    assert [(row.text, row.slot) for row in told.stages] == [
        ("twice", ""),
        ("(a callback, or another step)", "update"),
    ]


def test_a_sequence_names_its_parts_and_counts_all():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.G, self.D = nn.Linear(2, 3), nn.Linear(3, 1)

    def fake(model, batch):
        return model.D(model.G(torch.randn(len(batch), 2)))

    def d_loss(model, batch):
        return (F.softplus(-model.D(batch)) + F.softplus(fake(model, batch))).mean()

    step = fl.sequence(
        d=fl.pipe(d_loss, fl.grad(only="D"), fl.update(fl.optim.adam(0.1))),
        g=fl.pipe(lambda m, b: fake(m, b).mean(), fl.grad(only="G"), fl.update(fl.optim.sgd(0.1))),
        every={"g": 5},  # not at this call
    )
    told = fl.summary(step, step.init(Pair()), torch.zeros(5, 3))
    found = rows(told)
    assert (found["G"].calls, found["D"].calls) == (2, 3)
    assert told.flops.forward == 2 * 5 * (2 * 6 + 3 * 3)
    texts = [row.text for row in told.stages]
    assert texts[:2] == ["d/d_loss", "d/grad(only='D')"] and texts[-1].startswith("sequence(d, g")


def test_without_a_batch_nothing_is_run():
    def broken(model, batch):
        raise AssertionError

    told = of(mlp(), None, broken)
    assert told.flops is None and told.modules[0].flops is None
    assert "FLOPs" not in str(told) and told.sizes.parameters == 244


def test_modules_below_the_depth_are_not_printed():
    model = nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(8, 4))))
    for depth, lines in ((0, 1), (1, 2), (2, 3), (None, 4)):
        told = of(model, digits(), depth=depth)
        assert len(told.modules) == 4
        assert sum("Sequential" in t or "Linear" in t for t in str(told).splitlines()) == lines
    with pytest.raises(ValueError, match=r"summary\(depth=...\)"):
        of(model, digits(), depth=-1)


def test_what_cannot_be_recorded_says_what_can_be_told():
    def choosing(model, batch):
        value = loss(model, batch)
        return value if float(value.detach()) < 1 else 2 * value

    def drawing(model, batch):
        return random.random() * loss(model, batch)

    for function in (choosing, drawing):
        with pytest.raises(Exception, match=r".") as caught:
            of(mlp(), digits(), function)
        assert any("without a batch" in note for note in caught.value.__notes__)
        assert of(mlp(), None, function).sizes.parameters == 244


def test_arguments_that_cannot_be_are_refused():
    step = step_of()
    with pytest.raises(TypeError, match=r"step\.init\(model\)"):
        fl.summary(step, mlp(), digits())
    with pytest.raises(TypeError, match=r"fl\.shard"):
        fl.summary(step, step.init(mlp()), mesh=4)


@pytest.mark.parametrize("plan", ["replicate", "zero2", "zero3"])
def test_ranks_of_a_sequence_are_told_within_80_columns_too(plan):
    step = fl.sequence(
        discriminator_of_images=fl.pipe(loss, fl.grad(only="0"), fl.update(fl.optim.adam(0.1))),
        generator_of_images=fl.pipe(loss, fl.grad(only="3"), fl.update(fl.optim.adam(0.1))),
    )
    step = fl.shard(step, fl.mesh(), plan, sync_batchnorm=True)
    text = str(fl.summary(step, step.init(mlp()), digits(), mesh=1000))
    assert "on each of 1000 ranks" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_a_sharded_step_is_told_with_what_a_rank_keeps_and_moves():
    step = fl.shard(step_of(), fl.mesh(), "zero2")
    told = fl.summary(step, step.init(mlp()), digits(), mesh=4)
    assert told.flops.step == of(mlp(), digits()).flops.step
    assert told.sharded.moved == 2 * 3 * sum(-(-n // 4) * 4 for n in (128, 16, 16, 16, 64, 4))
    text = str(told)
    assert "on each of 4 ranks" in text and "gradients reduced" in text
    assert max(map(len, text.splitlines())) <= 80


def test_what_a_model_keeps_beside_its_tensors_is_put_back_afterwards_too():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.scale, self.table = mlp(), torch.tensor(2.0), [torch.ones(4)]

        def forward(self, x):
            self.body[1].seen = self.scale = self.scale + len(x)  # torch's own module, too
            self.table.append(x)
            return self.body(x) * self.scale * self.table[0]

    step, batch = step_of(), (torch.randn(6, 8), torch.randint(0, 4, (6,)))
    with pytest.warns(UserWarning, match="changed something outside"):
        state = step.init(Keeping())
        first = step(state, batch)[0]
        told = fl.summary(step, state, batch)
    assert told.flops == of(mlp(), batch).flops
    for _ in range(6):  # at some of which a model is looked at closely
        assert fl.tree_equal(step(state, batch)[0], first)
        module = state.skeleton.module
        assert float(module.scale) == 2.0 and len(module.table) == 1
        assert not hasattr(module.body[1], "seen")


@pytest.mark.parametrize("first", [True, False])
def test_the_model_keeps_no_hook_and_is_called_as_before(first):
    class Own(nn.Sequential):
        """Not torch's own class: it is looked at in every call."""

    step, batch = step_of(), (torch.randn(6, 8), torch.randint(0, 4, (6,)))
    model = Own(Own(*mlp()))
    states = [step.init(model), step.init(model)]
    for i in range(9):  # at some of which a model is looked at closely
        if i == (0 if first else 5):
            fl.summary(step, states[0], batch)
        states = [step(state, batch)[0] for state in states]
        assert fl.tree_equal(*states)
        outputs = [state.apply(lambda model: model(batch[0])) for state in states]
        assert torch.equal(*outputs)
    assert not any(m._forward_hooks for m in states[0].skeleton.module.modules())
