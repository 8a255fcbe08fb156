"""Evaluation and prediction in a precision, against torch.autocast."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
DATA = fl.Batches((X, X[:, :3].argmax(1)), 8, shuffle=False)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))


def loss(model, batch):
    x, y = batch
    scores = model(x)
    return F.cross_entropy(scores, y), {"mean": scores.float().mean()}


def scores(model, batch):
    return model(batch[0])


def by_hand(model, dtype, head=False):
    """The mean loss, and the outputs."""
    model.eval()
    total, outputs = 0.0, []
    with torch.no_grad():
        for x, y in DATA:
            with torch.autocast("cpu", dtype=dtype):
                h = model[:-1](x)
                with torch.autocast("cpu", dtype=dtype, enabled=not head):
                    out = model[-1](h.float() if head else h)
                total += F.cross_entropy(out, y).double().item() * len(x)
            outputs.append(out)
    return total / len(X), outputs


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_numbers_are_those_of_autocast(name, dtype, head):
    policy = fl.amp(name, modules={"3": "fp32"} if head else None)
    step = fl.pipe(loss, fl.grad, policy, fl.update(fl.optim.adamw(1e-2)))
    state = step.init(net())
    for batch in DATA:
        state, metrics = step(state, batch)
    expected, outputs = by_hand(fl.to_module(state), dtype, head)
    assert fl.evaluate(policy(loss), state, DATA)["loss"] == expected
    assert fl.evaluate(loss, state, DATA)["loss"] != expected
    _, reported = fl.validate(policy(loss), DATA)(state, metrics)
    assert float(reported["val/loss"]) == expected
    predicted = list(fl.predict(policy(scores), state, DATA))
    assert fl.tree_equal(predicted, outputs)
    assert predicted[0].dtype == (torch.float32 if head else dtype)


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16-true", torch.bfloat16), ("fp64", torch.float64)]
)
def test_batches_are_converted_to_the_dtype_of_the_state(name, dtype):
    policy = fl.amp(name)
    step = fl.pipe(loss, fl.grad, policy, fl.update(fl.optim.adamw(1e-2)), fl.ema(0.5))
    state, _ = fl.fit(
        step,
        step.init(net()),
        DATA,
        epochs=1,
        callbacks=[fl.every(1, fl.validate(policy(loss), DATA))],
    )
    for params in (None, "ema"):
        outputs = list(fl.predict(policy(scores), state, DATA, params=params))
        model = fl.to_module(state, params=params).eval()
        with torch.no_grad():
            assert fl.tree_equal(outputs, [model(x.to(dtype)) for x, _ in DATA])
    with pytest.raises(RuntimeError) as caught:
        fl.evaluate(loss, state, DATA)
    assert f'fl.amp("{name}")(loss)' in "\n".join(caught.value.__notes__)


def test_a_function_may_take_the_state_and_be_a_tree():
    def with_state(model, batch, state):
        return {"steps": fl.Last(state.step), "half": fl.Last(model(batch[0]).dtype.itemsize)}

    @fl.tree
    class Scaled:
        factor: float

        def __call__(self, model, batch, state):
            return {"loss": self.factor * loss(model, batch)[0], "seen": fl.Last(state.step)}

    state = fl.pipe(loss, fl.grad).init(net())
    assert fl.evaluate(fl.amp("bf16")(with_state), state, DATA) == {"steps": 0, "half": 2}
    half = fl.evaluate(fl.amp("bf16")(loss), state, DATA)["loss"]
    scaled = fl.evaluate(fl.amp("bf16")(Scaled(2.0)), state, DATA)
    assert scaled["loss"] == pytest.approx(2 * half) and scaled["seen"] == 0


def test_tf32_is_put_back():
    def seeing(model, batch):
        return {"high": fl.Last(float(torch.get_float32_matmul_precision() == "high"))}

    state = fl.pipe(loss, fl.grad).init(net())
    assert fl.evaluate(fl.amp("tf32")(seeing), state, DATA) == {"high": 1}
    assert torch.get_float32_matmul_precision() == "highest"


def test_it_prints_as_it_is_written():
    assert repr(fl.amp("bf16")(loss)) == "amp('bf16')(loss)"
    policy = fl.amp("bf16", modules={"3": "fp32"})
    assert repr(policy(loss)) == "amp('bf16', modules={'3': 'fp32'})(loss)"
    assert policy(loss) == policy(loss)


def test_in_a_pipeline_it_stands_behind_the_gradient():
    with pytest.raises(TypeError, match=r"amp\('bf16'\)\(loss\).*stands behind fl\.grad"):
        fl.pipe(loss, fl.amp("bf16"), fl.grad)
    with pytest.raises(TypeError, match="is a model"):
        fl.amp("bf16")(net())
    with pytest.raises(ValueError, match="fp8"):
        fl.amp("fp8")(loss)
