"""Under a transform, functions of torch do what they do without."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fnloop._torch.members import drawing
from fnloop._torch.transformable import transformable

CPU = torch.device("cpu")


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


X = normal(2, 5, 4)


def dropped(x):
    return F.dropout(x.transpose(0, 1) * 2, 0.5)


def alone(seed, x):
    with drawing([seed], CPU):
        return dropped(x)


def test_each_member_of_a_vmapped_function_has_its_own_mask():
    stacked = torch.stack([X, X + 1, X + 2])
    with drawing([7, 8, 9], CPU):
        many = torch.func.vmap(dropped, randomness="different")(stacked)
    for i in range(3):
        assert torch.equal(many[i], alone(7 + i, stacked[i]))


def test_a_differentiated_function_has_the_mask_of_the_function():
    def total(x):
        with drawing([7], CPU):
            return dropped(x).sum()

    assert torch.equal(torch.func.grad(total)(X), (alone(7, X) != 0).transpose(0, 1) * 4.0)


@pytest.mark.parametrize("options", [{"p": 0.0}, {"p": 1.0}, {"training": False}])
def test_dropout_that_draws_nothing(options):
    with drawing([7, 8], CPU):
        many = torch.func.vmap(lambda x: F.dropout(x, **options), randomness="different")(X)
    assert torch.equal(many, torch.stack([F.dropout(x, **options) for x in X]))


NORMS = {
    "batch": (lambda: nn.BatchNorm2d(4), True),
    "batch, evaluated": (lambda: nn.BatchNorm2d(4), False),
    "layer": (lambda: nn.LayerNorm(3), True),
    "group": (lambda: nn.GroupNorm(2, 4), True),
    "instance": (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), True),
}


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NORMS)
def test_half_precision_is_normalized_beside_parameters_in_float32(name, half):
    make, training = NORMS[name]
    layer, x = make().train(training), normal(5, 4, 3, 3).to(half)
    weights = torch.stack([torch.ones_like(layer.weight), 1.5 * torch.ones_like(layer.weight)])
    running = {n: torch.stack([b, b]) for n, b in layer.named_buffers()}

    def loss(weight, buffers, x):
        buffers = {n: b.clone() for n, b in buffers.items()}
        y = torch.func.functional_call(layer, {"weight": weight, **buffers}, (x + x.square(),))
        return y.float().square().sum(), (y, buffers)

    slopes = torch.func.grad(loss, (0, 2), has_aux=True)
    with transformable():
        many = torch.func.vmap(slopes, (0, 0, None))(weights, running, x)
    for i in range(2):
        own = {n: b[i] for n, b in running.items()}
        leaf, given = weights[i].clone().requires_grad_(), x.clone().requires_grad_()
        total, (y, buffers) = loss(leaf, own, given)
        total.backward()
        expected = (leaf.grad, given.grad), (y, buffers)
        got = torch.utils._pytree.tree_map(lambda t, i=i: t[i], many)
        torch.testing.assert_close(got, expected, rtol=3e-2, atol=3e-2)


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.heads(x, x, x, need_weights=False)[0]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x):
        x = self.mix(x)
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)


TWICE = {
    "layer": lambda: nn.LayerNorm(4),
    "layer, two dimensions": lambda: nn.LayerNorm((3, 4)),
    "layer, without parameters": lambda: nn.LayerNorm(4, elementwise_affine=False),
    "batch": lambda: nn.BatchNorm1d(3),
    "batch, evaluated": lambda: nn.BatchNorm1d(3).eval(),
    "instance": lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
    "instance, evaluated": lambda: nn.InstanceNorm1d(3, track_running_stats=True).eval(),
    "weights with a norm": lambda: weight_norm(nn.Linear(4, 4)),
    "one norm": lambda: weight_norm(nn.Linear(4, 4), dim=None),
    "attention": Attention,
    "heads": Heads,
}


def vmapped(slope, x):
    return torch.func.vmap(slope)(torch.stack([x, 2 * x]))


def forward_mode(slope, x):
    return torch.func.jvp(slope, (x,), (x.cos(),))[1]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", TWICE)
@pytest.mark.parametrize("how", ["vmap", "forward mode", "autograd"])
def test_a_derivative_of_derivatives_is_that_of_finite_differences(name, how):
    torch.manual_seed(0)
    layer, x = TWICE[name]().double(), normal(5, 3, 4).double()
    params = {n: p.detach() for n, p in layer.named_parameters()}
    buffers = {n: b.detach() for n, b in layer.named_buffers()}

    def total(scale, x):
        own = {n: p * scale for n, p in params.items()}
        own |= {n: b + 0 * x.detach().sum().to(b.dtype) for n, b in buffers.items()}  # batched as x
        out = torch.func.functional_call(layer, own, torch.tanh(scale * x))
        return (out.sin() * out).sum()

    def slopes(scale):
        """The norm of derivatives that a step takes."""
        if how == "autograd":
            leaf = x.clone().requires_grad_()
            found = torch.autograd.grad(total(scale, leaf), leaf, create_graph=True)[0]
        elif how == "vmap":
            found = vmapped(torch.func.grad(lambda x: total(scale, x)), x)
        else:
            found = forward_mode(lambda x: total(scale, x), x)
        return found.square().sum()

    def derivative(at):
        if how != "autograd":
            return torch.func.grad(slopes)(at)
        leaf = at.clone().requires_grad_()
        return torch.autograd.grad(slopes(leaf), leaf)[0]

    at, h = torch.tensor(0.7, dtype=torch.float64), 1e-6
    with transformable(twice=how == "autograd"):
        found = derivative(at)
        expected = (slopes(at + h) - slopes(at - h)) / (2 * h)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["batch", "instance"])
def test_running_statistics_are_the_same_where_derivatives_are_taken_twice(name):
    layer, x = TWICE[name](), normal(5, 3, 4)

    def total(x):
        own = {n: b.clone() for n, b in layer.named_buffers()}
        return torch.func.functional_call(layer, own, x).sin().sum(), own

    def slopes(x):
        found, own = torch.func.grad(total, has_aux=True)(x)
        return found.square().sum(), own

    with transformable():
        _, buffers = torch.func.grad(slopes, has_aux=True)(x)
    layer(x)
    torch.testing.assert_close(buffers, dict(layer.named_buffers()))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.InstanceNorm1d(3), nn.LayerNorm(4)])
def test_a_second_derivative_in_half_precision_is_near_that_in_float32(layer):
    def second(layer, x):
        def total(x):
            buffers = {n: b.clone() for n, b in layer.named_buffers()}
            return torch.func.functional_call(layer, buffers, (x,)).float().sin().sum()

        slope = torch.func.grad(total)
        return torch.func.grad(lambda x: slope(x).float().square().sum())(x)

    half = copy.deepcopy(layer).to(torch.bfloat16)
    x = normal(5, 3, 4)
    with transformable():
        found, expected = second(half, x.bfloat16()), second(layer, x)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_of_each_example_without_derivatives(kind):
    layer, x = kind(2, 3, batch_first=True), normal(6, 1, 4, 2)
    with transformable(), torch.no_grad():
        many = torch.func.vmap(lambda x: layer(x)[0])(x)
    torch.testing.assert_close(many, torch.stack([layer(each)[0] for each in x]))


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_recurrent_cell_of_each_example(kind):
    cell, x = kind(2, 3), normal(6, 1, 2)

    def first(x):
        state = cell(cell(x)[0] @ torch.ones(3, 2)) if kind is nn.LSTMCell else cell(x)
        return (state[0] if kind is nn.LSTMCell else state).square().sum()

    with transformable():
        many = torch.func.vmap(torch.func.grad(first))(x)
    torch.testing.assert_close(many, torch.stack([torch.func.grad(first)(each) for each in x]))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("relu", [False, True])
def test_a_recurrent_layer_of_each_example(kind, relu):
    options = {"nonlinearity": "relu"} if relu and kind is nn.RNN else {}
    layer, x = kind(2, 3, batch_first=True, bidirectional=True, **options), normal(6, 1, 4, 2)

    def loss(x):
        out, hidden = layer(x)
        last = torch.cat(hidden) if kind is nn.LSTM else hidden
        return out.square().sum() + last.sum(), (out, last)

    slopes = torch.func.grad(loss, has_aux=True)
    with transformable():
        many = torch.func.vmap(slopes)(x)
    for i in range(6):
        got = torch.utils._pytree.tree_map(lambda t, i=i: t[i], many)
        torch.testing.assert_close(got, slopes(x[i]))


KEPT = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) < 0.7
ATTENTION = {
    "plain": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.3},
    "masked": {"attn_mask": KEPT.index_fill(0, torch.tensor(2), False)},  # a row sees nothing
    "biased": {"attn_mask": torch.linspace(-1, 1, 36).view(6, 6)},
    "groups": {"enable_gqa": True},
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_with_dropout_of_each_example_of_each_member(name):
    def attend(query, key):
        return F.scaled_dot_product_attention(query, key, key, dropout_p=0.3, **ATTENTION[name])

    check_members(
        attend,
        normal(2, 5, 1, 4, 6, 3),
        normal(2, 5, 1, 2, 6, 3).repeat((1, 1, 1, 1 if name == "groups" else 2, 1, 1)),
    )


def test_heads_with_dropout_of_each_example_of_each_member():
    layer = nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)
    x = normal(2, 5, 1, 6, 4)
    for options in ({"need_weights": False}, {"need_weights": False, "key_padding_mask": KEPT[:1]}):
        check_members(lambda q, k, o=options: layer(q, k, k, **o)[0], x, x * 2)


def check_members(attend, queries, keys):
    """What two ``vmap`` give for each member is what one gives, with its random numbers."""
    examples = torch.func.vmap(attend, randomness="different")
    with drawing([7, 8], CPU):
        many = torch.func.vmap(examples, randomness="different")(queries, keys)
    for i in range(2):
        with drawing([7 + i], CPU):
            torch.testing.assert_close(many[i], examples(queries[i], keys[i]))


def test_attention_with_dropout_that_is_cast():
    """Half precision in a ``vmap``, and its derivative, which torch's own rules fail for."""
    weights, x = normal(2, 4, 4), normal(3, 1, 6, 4)

    def loss(weight):
        with torch.autocast("cpu", torch.bfloat16):
            q = x @ weight
            return F.scaled_dot_product_attention(q, q, q, dropout_p=0.3).float().square().mean()

    with drawing([7, 8], CPU):
        many = torch.func.vmap(torch.func.grad(loss), randomness="different")(weights)
    for i in range(2):
        leaf = weights[i].clone().requires_grad_()
        with drawing([7 + i], CPU):
            loss(leaf).backward()
        # With another mask, a third of its size.
        assert (many[i] - leaf.grad).norm() < 0.05 * leaf.grad.norm()
