"""A model whose buffer takes the shape of its last batch."""

import torch
from torch import nn


class Carrying(nn.Module):
    """Carries a hidden state, of as many rows as its last batch had."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("hidden", torch.zeros(16, 3))

    def forward(self, x):
        hidden = self.linear(x)
        self.hidden = hidden.detach()
        return hidden
