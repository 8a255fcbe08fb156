"""Rows in which several sequences stand one behind the other."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class PackedRows(NamedTuple):
    """A row of `fl.data.pack`, or a batch of rows. What is after its last document must not count.

    Attributes:
        batch: The packed fields, in the structure of an example: ``[rows, length, ...]`` each.
        document: int64[rows, length]: the number of the document in its row, from 1 on; 0 where
            there is none.
        position: int64[rows, length]: the position within the document, from 0 on.
    """

    batch: Any
    document: Tensor
    position: Tensor

    def attends(self, causal: bool = True) -> Tensor:
        """Where a position may look: bool[rows, 1, length, length], for all heads.

        At those of the same document; if `causal`, at none that comes later. For
        ``F.scaled_dot_product_attention(q, k, v, attn_mask=packed.attends())``. What is after the
        last document looks at itself, so that nothing is nan.

        >>> import torch
        >>> PackedRows(None, torch.tensor([[1, 1, 2]]), torch.tensor([[0, 1, 0]])).attends().int()
        tensor([[[[1, 0, 0],
                  [1, 1, 0],
                  [0, 0, 1]]]], dtype=torch.int32)
        """
        document = self.document.unsqueeze(-2)
        same = document.unsqueeze(-1) == document.unsqueeze(-2)
        return same.tril() if causal else same

    def continues(self) -> Tensor:
        """Where the next position goes on with the document: bool[rows, length - 1].

        These are the tokens that a causal language model has to predict: all but the first of each
        document.

        >>> import torch
        >>> PackedRows(None, torch.tensor([[1, 1, 2, 2, 0, 0]]), torch.zeros(1, 6)).continues()
        tensor([[ True, False,  True, False, False]])
        """
        here, following = self.document[..., :-1], self.document[..., 1:]
        return (here == following) & (following > 0)
