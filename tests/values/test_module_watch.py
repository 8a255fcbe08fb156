"""What a model keeps outside of its parameters and buffers is put back, and told once."""

from __future__ import annotations

import collections
import dataclasses
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

import fnloop as fl
from fnloop import testing

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.ones(6, 1)


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))


class Settings:
    def __init__(self):
        self.scale = 1.0
        self.seen = []


@dataclasses.dataclass(slots=True)
class Slotted:
    scale: float = 1.0
    seen: list = dataclasses.field(default_factory=list)
    last: object = None


class Keeps(nn.Module):
    """Does one thing outside of its tensors in each call."""

    def __init__(self, act):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.dropout = nn.Dropout(0.0)
        self.act = act
        self.count = 1
        self.history = []
        self.cache = {"old": {"deep": [1.0]}}
        self.names = {"a"}
        self.recent = collections.deque([1.0], maxlen=3)
        self.by_name = collections.defaultdict(list)
        self.settings = Settings()
        self.slotted = Slotted()
        self.scale = torch.ones(())
        self.table = np.ones(3)
        self.extra = [nn.Linear(3, 1)]  # not registered

    def forward(self, x):
        factor = self.act(self, x)
        return self.linear(x) * (1.0 if factor is None else factor)


def double(module, args, output):
    return output * 2


def assign(self, x):
    self.count += 1
    self.last = self.linear(x)
    return self.count


def hook(self, x):
    if self.count == 1:  # behind a flag
        self.count = 2
        self.linear.register_forward_hook(double)


def grow(self, x):
    self.history.append(x.mean())
    return float(len(self.history))


def keep(self, x):
    self.cache["y"] = self.linear(x)
    return float(len(self.cache))


def nest(self, x):
    self.cache["old"]["deep"][0] *= 2
    self.cache["old"]["more"] = self.linear(x)
    return self.cache["old"]["deep"][0]


def add(self, x):
    self.names.add("b")
    self.recent.append(2.0)
    self.by_name["x"].append(self.linear(x))
    return sum(self.recent) + len(self.by_name["x"])


def configure(self, x):
    self.settings.scale *= 2
    self.settings.seen.append(self.linear(x))
    return self.settings.scale * len(self.settings.seen)


def configure_slots(self, x):
    self.slotted.scale *= 2
    self.slotted.last = self.linear(x)
    self.slotted.seen.append(self.slotted.last)
    return self.slotted.scale * len(self.slotted.seen)


def write_tensor(self, x):
    self.scale.mul_(2)
    return float(self.scale)


def write_tensor_by_data(self, x):
    self.scale.data.mul_(2)
    return float(self.scale)


def write_array(self, x):
    self.table *= 2
    return float(self.table[0])


def set_layer(self, x):
    self.dropout.p += 0.1
    self.linear.kept = self.linear(x)
    return 1 + self.dropout.p


def set_mode(self, x):
    self.dropout.train(not self.dropout.training)
    return 1.0 + self.dropout.training


def replace_layer(self, x):
    self.dropout = nn.Identity()
    self.third = nn.Identity()
    return float(len(self._modules))


def write_unregistered(self, x):
    self.extra[0].weight.data.add_(1)
    return float(self.extra[0].weight.detach().sum())


ACTS = {
    assign: "count, last",
    hook: "count, hooks of linear",
    grow: "history",
    keep: "cache",
    nest: r"cache\['old'\]",
    add: "names, recent, by_name",
    configure: "settings",
    configure_slots: "slotted, slotted.seen",
    write_tensor: "scale",
    write_tensor_by_data: "scale",
    write_array: "table",
    set_layer: r"dropout\.p",
    set_mode: r"dropout\.training",
    replace_layer: "dropout",
    write_unregistered: "extra",
}


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_everything_is_put_back_after_each_call_and_named_once(act):
    model = Keeps(act)
    state = STEP.init(model, seed=0)
    with pytest.warns(UserWarning, match="Keeps changed something outside") as told:
        first = STEP(state, (X, Y))
    assert len(told) == 1 and "register_buffer" in str(told[0].message)
    for name in ACTS[act].split(", "):
        assert name.replace("\\", "") in str(told[0].message)
    for _ in range(5):  # once: warnings are errors here
        assert STEP(state, (X, Y)) == first
    testing.check_resumes(STEP, state, [(X, Y)], steps=2)


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
@pytest.mark.filterwarnings("ignore:The model Keeps changed")
def test_evaluation_leaves_nothing_behind(act):
    state = STEP.init(Keeps(act), seed=0)
    first = fl.evaluate(loss, state, [(X, Y)])
    for _ in range(2):
        assert fl.evaluate(loss, state, [(X, Y), (X, Y)]) == first
    assert len({float(y.sum()) for y in fl.predict(lambda m, b: m(b[0]), state, [(X, Y)] * 3)}) == 1


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
@pytest.mark.filterwarnings("ignore:The model Keeps changed")
def test_the_module_can_be_built_and_the_state_pickled_afterwards(act):
    model = Keeps(act)
    state = STEP.init(model, seed=0)
    after, _ = STEP(state, (X, Y))
    module = fl.to_module(after)
    own, theirs = (
        {k: str(v) for k, v in vars(m).items() if not isinstance(v, (nn.Module, dict))}
        for m in (model, module)
    )
    for kept in (own, theirs):
        for key in ("extra", "settings", "training"):  # other objects, equal in what matters
            kept.pop(key)
    assert own == theirs and module.cache == model.cache
    assert module.settings.seen == [] and module.settings.scale == 1.0
    twin = pickle.loads(pickle.dumps(state))
    assert twin == state
    for _ in range(2):
        assert STEP(twin, (X, Y))[0] == after


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
@pytest.mark.filterwarnings("ignore:The model Keeps changed")
def test_a_compiled_step_leaves_nothing_behind(act):
    state = STEP.init(Keeps(act), seed=0)
    fast = fl.compile(STEP, backend="aot_eager")
    if act in (write_tensor, write_tensor_by_data, write_unregistered):
        with pytest.raises(
            fl.errors.CompileError, match=r"that it was not given|value of a tensor"
        ):
            fast(state, (X, Y))
    else:
        expected, got = STEP(state, (X, Y))[0], fast(state, (X, Y))[0]
        for name in expected.params:
            torch.testing.assert_close(got.params[name], expected.params[name])
    module = fl.to_module(state)  # no fake tensor in it
    assert module.history == [] and set(module.cache) == {"old"} and not hasattr(module, "last")
    assert torch.equal(module.scale, torch.ones(()))


def test_a_hook_behind_a_flag_does_not_pile_up():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.0)))
    state = step.init(Keeps(hook), seed=0)
    with pytest.warns(UserWarning, match="hooks of linear"):
        state, first = step(state, (X, Y))
    for _ in range(4):
        state, metrics = step(state, (X, Y))
        assert float(metrics["loss"]) == float(first["loss"])


def test_what_happens_late_is_put_back_and_told_at_the_next_close_look():
    calls = [0]

    def late(self, x):
        calls[0] += 1
        if calls[0] >= 3:
            self.dropout.p += 0.1  # of one of torch's own layers
        return 1 + self.dropout.p

    state = STEP.init(Keeps(late), seed=0)
    for _ in range(3):
        STEP(state, (X, Y))
    with pytest.warns(UserWarning, match=r"dropout\.p"):
        STEP(state, (X, Y))
    assert fl.to_module(state).dropout.p == 0.0


def test_a_call_that_fails_puts_back_too():
    def fail(self, x):
        self.history.append(self.linear(x))
        self.linear.register_forward_hook(double)
        raise KeyError("no")

    state = STEP.init(Keeps(fail), seed=0)
    for _ in range(2):
        with pytest.raises(KeyError):
            STEP(state, (X, Y))
    module = fl.to_module(state)
    assert module.history == [] and not module.linear._forward_hooks


def test_a_loss_that_changes_the_model_is_noticed_too():
    def rude(model, batch):
        model[1].p = 0.5
        return loss(model, batch)

    step = fl.pipe(rude, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.0)))
    with pytest.warns(UserWarning, match=r"1\.p"):
        step(state, (X, Y))
    assert fl.to_module(state)[1].p == 0.0


def test_a_hook_that_comes_and_goes_within_a_call_is_nothing_to_tell():
    def capture(self, x):
        seen = []
        handle = self.linear.register_forward_hook(lambda m, i, o: seen.append(o))
        self.linear(x)
        handle.remove()
        return seen[0].detach()

    state = STEP.init(Keeps(capture), seed=0)
    assert STEP(state, (X, Y)) == STEP(state, (X, Y))


def test_a_hook_that_is_removed_in_a_call_is_there_in_the_next():
    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)
            self.handle = self.linear.register_forward_hook(double)

        def forward(self, x):
            y = self.linear(x)
            self.handle.remove()
            return y

    state = STEP.init(Once())
    with pytest.warns(UserWarning, match="hooks of linear"):
        first = STEP(state, (X, Y))
    assert STEP(state, (X, Y)) == first


@pytest.mark.parametrize("build", [
    lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 1)),
    lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Linear(4, 1)),
    lambda: nn.Sequential(spectral_norm(nn.Linear(3, 4)), nn.Linear(4, 1)),
    lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1)),
    lambda: nn.Sequential(nn.TransformerEncoderLayer(3, 3, 4), nn.Linear(3, 1)),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchs_own_layers_go_on_working_and_are_nothing_to_tell(build):
    state = STEP.init(build, seed=0)
    first = STEP(state, (X, Y))
    assert STEP(state, (X, Y)) == first  # seen closely, and not
    values = [fl.evaluate(loss, state, [(X, Y)]) for _ in range(3)]
    assert values[0] == values[1] == values[2]
    fl.to_module(state)(X)


def test_recurrent_layers_leave_no_old_weights_behind():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.lstm(x[:, None])[0][:, -1])

    state = STEP.init(Recurrent())
    for _ in range(3):
        state, _ = STEP(state, (X, Y))
    assert all(w.is_meta for w in state.skeleton.module.lstm._flat_weights)
    built = fl.to_module(state)
    assert loss(built, (X, Y)).item() == pytest.approx(fl.evaluate(loss, state, [(X, Y)])["loss"])


def test_no_graph_and_no_tensor_stays_alive():
    import gc
    import weakref

    alive = []

    def collect(self, x):
        y = self.linear(x)
        alive.append(weakref.ref(y))
        self.history.append(y)
        self.cache["y"] = self.settings.seen = self.kept = y

    state = STEP.init(Keeps(collect))
    with pytest.warns(UserWarning):
        STEP(state, (X, Y))
    for _ in range(2):
        STEP(state, (X, Y))
    gc.collect()
    assert len(alive) == 3 and not any(ref() is not None for ref in alive)


class Shares(nn.Module):
    """Keeps its parameters and buffers in other places too."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(3, 1)), nn.Parameter(torch.ones(1))
        self.weights = [self.a]
        self.by_name = {"bias": self.b}
        self.settings = Settings()
        self.settings.weight = self.a
        self.register_buffer("seen", torch.zeros(()))
        self.also_seen = self.seen

    def forward(self, x):
        self.seen += 1
        return x @ self.weights[0] + self.by_name["bias"] + 0 * self.also_seen


def test_parameters_in_lists_and_dicts_train():
    model = Shares()
    state = STEP.init(model)
    module = fl.to_module(state)
    assert module.weights[0] is module.a and module.settings.weight is module.a
    reference = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        state, _ = STEP(state, (X, Y))
        reference.zero_grad()
        loss(module, (X, Y)).backward()
        reference.step()
    torch.testing.assert_close(state.params["a"], module.a.detach())
    torch.testing.assert_close(state.params["b"], module.b.detach())
    assert state.buffers["seen"] == module.also_seen == 3
    twin = pickle.loads(pickle.dumps(state))
    assert STEP(twin, (X, Y))[0] == STEP(state, (X, Y))[0]


def test_a_buffer_with_two_names_that_is_assigned_is_refused():
    class Both(Shares):
        def forward(self, x):
            self.seen = self.seen + 1
            return x @ self.a

    with pytest.raises(ValueError, match="'seen' anew, and keeps the buffer under another name"):
        STEP(STEP.init(Both()), (X, Y))


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_what_is_registered_in_forward_is_refused(kind):
    class Late(nn.Linear):
        def forward(self, x):
            if not hasattr(self, "late"):
                if kind == "buffer":
                    self.register_buffer("late", torch.zeros(1))
                else:
                    self.late = nn.Parameter(torch.zeros(1))
            return super().forward(x) + self.late

    state = STEP.init(Late(3, 1))
    for _ in range(2):
        with pytest.raises(ValueError, match=f"adds the {kind} 'late'"):
            STEP(state, (X, Y))


def test_replay_may_add_hooks_of_its_own():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    state = STEP.init(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = fl.replay(STEP, state, (X * torch.inf, Y))
        STEP(state, (X, Y))
    assert "0" in str(report)


def test_a_list_of_parameters_that_is_emptied_is_put_back():
    class Empties(Shares):
        def forward(self, x):
            y = x @ self.weights.pop() + self.by_name.pop("bias")
            return y + 0 * self.seen

    state = STEP.init(Empties())
    with pytest.warns(UserWarning, match="weights"):
        first = STEP(state, (X, Y))
    assert STEP(state, (X, Y)) == first
