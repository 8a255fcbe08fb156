"""What is advised instead of what cannot be recorded: of that operation, and it works."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import fnloop as fl

TOKENS = torch.tensor([[1, 2, 0], [3, 0, 0]])
LENGTHS = torch.tensor([2, 1])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.cell = nn.GRU(4, 4, batch_first=True)

    def packed(self, tokens, lengths):
        x = pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        return self.cell(x)[1]

    def padded(self, tokens, lengths):
        output = self.cell(self.embedding(tokens))[0]
        return output[range(len(tokens)), lengths - 1]


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4, 8))

    def grouped(self, x):
        return F.grouped_mm(x, self.weight, offs=torch.tensor([4, 8], dtype=torch.int32))

    def batched(self, x):
        group = torch.arange(8) // 4
        return torch.bmm(x[:, None], self.weight[group])[:, 0]


def last_packed(model, batch):
    return model.packed(*batch).square().mean()


def last_padded(model, batch):
    return model.padded(*batch).square().mean()


def grouped(model, x):
    return model.grouped(x).square().mean()


def batched(model, x):
    return model.batched(x).square().mean()


def square(model, x):
    return model(x).square().mean()


def hessian(model, x):
    f = torch.func.hessian(lambda v: model(v).tanh().sum())
    return torch.func.vmap(f)(x).square().mean()


def jacobians(model, x):
    f = torch.func.jacrev(torch.func.jacrev(lambda v: model(v).tanh().sum()))
    return torch.func.vmap(f)(x).square().mean()


def repeats(model, x):
    return model(x).repeat_interleave((x[:, 0] > -9).long(), 0).square().mean()


def repeats_known(model, x):
    counts = (x[:, 0] > -9).long()
    return model(x).repeat_interleave(counts, 0, output_size=8).square().mean()


def binned(model, x):
    return square(model, x) * torch.bincount((x[:, 0] > -9).long()).max()


def added(model, x):
    places = (x[:, 0] > -9).long()
    return square(model, x) * torch.zeros(2).index_add(0, places, torch.ones(8)).max()


def one_hot(model, x):
    return square(model, x) * F.one_hot((x[:, 0] > -9).long()).sum()


def one_hot_of_two(model, x):
    return square(model, x) * F.one_hot((x[:, 0] > -9).long(), 2).sum()


def ctc(model, x):
    scores = model(x)[:, None].log_softmax(-1)
    return F.ctc_loss(scores, torch.tensor([[1, 1]]), torch.tensor([8]), torch.tensor([2]))


def ctc_of_lists(model, x):
    scores = model(x)[:, None].log_softmax(-1)
    return F.ctc_loss(scores, torch.tensor([[1, 1]]), [8], [2])


def slices(model, x):
    return model(x)[: (x[:, 0] > 0).sum()].square().sum() / 4


def masks(model, x):
    mask = torch.arange(8) < (x[:, 0] > 0).sum()
    return (mask[:, None] * model(x)).square().sum() / 4


def uniques(model, x):
    return square(model, x) * x[:, 0].sign().unique(return_counts=True)[1].max()


def counts(model, x):
    places = (x[:, 0] > 0).long()
    return square(model, x) * torch.zeros(3).index_add(0, places, torch.ones(8)).max()


def least_squares(model, x):
    return torch.linalg.lstsq(model(x), x[:, :1]).solution.square().mean()


def pseudoinverse(model, x):
    return (torch.linalg.pinv(model(x)) @ x[:, :1]).square().mean()


ROW, COLUMN = torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 3])


def sparse_product(model, x):
    matrix = torch.sparse_coo_tensor(torch.stack([ROW, COLUMN]), model.bias, (8, 8))
    return torch.sparse.mm(matrix, model(x)).square().mean()


def added_rows(model, x):
    rows = model.bias[:, None] * model(x)[COLUMN]
    return torch.zeros(8, 4).index_add(0, ROW, rows).square().mean()


def of_tensors(model, x):
    return square(model, x) * torch.tensor([x[0, 0], x[0, 1]]).sum()


def stacked(model, x):
    return square(model, x) * torch.stack([x[0, 0], x[0, 1]]).sum()


def nested(model, x):
    parts = torch.nested.as_nested_tensor([model(x)[:3], model(x)[3:]])
    return parts.to_padded_tensor(0.0).square().mean()


def padded(model, x):
    parts = nn.utils.rnn.pad_sequence([model(x)[:3], model(x)[3:]], batch_first=True)
    return parts.square().mean()


def packed_batch(model, x):
    return fl.Mean(model(x)[0].data.square().sum(), 5)


def padded_batch(model, x):
    mask = (torch.arange(3) < torch.tensor([[3], [2]]))[..., None]
    return fl.Mean((mask * model(x)[0]).square().sum(), 5)


def dense_embedding():
    return nn.Embedding(5, 4, padding_idx=0)


def recurrent():
    return nn.GRU(4, 4, batch_first=True)


def sparse_embedding():
    return nn.Embedding(5, 4, padding_idx=0, sparse=True)


ROWS = torch.linspace(-1, 1, 32).reshape(8, 4)
LINEAR = (lambda: nn.Linear(4, 2), ROWS)
SQUARE = (lambda: nn.Linear(4, 4), ROWS)
SEQUENCES = [ROWS[:3], ROWS[3:5]]
PACKED = nn.utils.rnn.pack_sequence(SEQUENCES)
PADDED = nn.utils.rnn.pad_sequence(SEQUENCES, batch_first=True)
RECURRENT = (Recurrent, (TOKENS, LENGTHS))

# What does not compile, what the message says, and the remedy that it proposes.
REMEDIES = {
    "a packed sequence": (
        (*RECURRENT, last_packed), "of a packed sequence .*on the padded batch",
        (*RECURRENT, last_padded),
    ),
    "a sparse embedding with padding": (
        (sparse_embedding, TOKENS, square), "backward pass.*leave sparse=True out",
        (dense_embedding, TOKENS, square),
    ),
    "a grouped product": (
        (Experts, ROWS, grouped), r"grouped_mm\) for bfloat16, and.*torch.bmm.*batched_mm",
        (Experts, ROWS, batched),
    ),
    "a Hessian under vmap": (
        (*LINEAR, hessian), r"forward-mode.*jacrev\(torch\.func\.jacrev\(f\)\)",
        (*LINEAR, jacobians),
    ),
    "repeat_interleave": ((*LINEAR, repeats), "output_size=n", (*LINEAR, repeats_known)),
    "bincount": ((*LINEAR, binned), "index_add", (*LINEAR, added)),
    "one_hot": ((*LINEAR, one_hot), r"F\.one_hot\(y, n\)", (*LINEAR, one_hot_of_two)),
    "a slice": ((*LINEAR, slices), r"torch\.arange\(size\) < n", (*LINEAR, masks)),
    "unique": ((*LINEAR, uniques), "number of different values.*index_add", (*LINEAR, counts)),
    "lstsq": ((*LINEAR, least_squares), r"linalg\.pinv", (*LINEAR, pseudoinverse)),
    "a sparse product": (
        (*SQUARE, sparse_product), "use of a sparse tensor.*index_add", (*SQUARE, added_rows)
    ),
    "a tensor of tensors": ((*LINEAR, of_tensors), r"torch\.stack", (*LINEAR, stacked)),
    "nested tensors": ((*LINEAR, nested), "Pad the parts", (*LINEAR, padded)),
    "a batch that is packed": (
        (recurrent, PACKED, packed_batch), "of a packed sequence .*on the padded batch",
        (recurrent, PADDED, padded_batch),
    ),
    "CTC": ((*LINEAR, ctc), r"custom_op.*\"CTC\"", None),  # the remedy runs in compile.md
    "CTC with lists of lengths": ((*LINEAR, ctc_of_lists), r"custom_op.*\"CTC\"", None),
}  # fmt: skip


def first_step(model, batch, loss):
    torch.manual_seed(0)
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    return fl.compile(step, backend="aot_eager"), step.init(model()), batch


@pytest.mark.filterwarnings("ignore:Sparse|The PyTorch API of nested:UserWarning")
@pytest.mark.parametrize("name", REMEDIES)
def test_the_remedy_is_that_of_the_operation_and_works(name):
    wrong, message, right = REMEDIES[name]
    step, state, batch = first_step(*wrong)
    with pytest.raises(fl.errors.CompileError, match=f"(?s){message}"):
        step(state, batch)
    expected, _ = step.inner(state, batch)
    if right is not None:
        step, same, batch = first_step(*right)
        assert fl.tree_equal(state.params, same.params)
        got, _ = step(same, batch)
        for name, value in expected.params.items():
            torch.testing.assert_close(got.params[name], value)
