"""Models of diffusers and torch_geometric, and recurrent ones of PyTorch itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import rnn
from torch.utils.checkpoint import checkpoint

import fnloop as fl

from .entry import Entry

# diffusers: predict the noise of a noisy picture


def diffuser(name: str, **settings: Any) -> nn.Module:
    """A model of diffusers by the name of its class, from settings alone."""
    import diffusers

    return getattr(diffusers, name)(**settings)


def noisy() -> dict[str, torch.Tensor]:
    return {"sample": torch.randn(4, 3, 16, 16), "timestep": torch.randint(1000, (4,))}


def prompted() -> dict[str, torch.Tensor]:
    return {**noisy(), "encoder_hidden_states": torch.randn(4, 5, 16)}


def labelled() -> dict[str, torch.Tensor]:
    return {
        "hidden_states": torch.randn(4, 3, 16, 16),
        "timestep": torch.randint(1000, (4,)),
        "class_labels": torch.randint(5, (4,)),
    }


def noise_loss(model: Any, batch: Any) -> torch.Tensor:
    """The mirror image stands for the noise, so that the loop by hand has the same."""
    name = "sample" if "sample" in batch else "hidden_states"
    return (model(**batch).sample - batch[name].flip(-1)).square().mean()


def dit() -> nn.Module:
    """Without the labels that it drops at random, at a rate that no setting changes."""
    model = diffuser(
        "DiTTransformer2DModel", num_attention_heads=2, attention_head_dim=8, in_channels=3,
        out_channels=3, num_layers=1, norm_num_groups=2, sample_size=16, patch_size=4,
        num_embeds_ada_norm=10,
    )  # fmt: skip
    for module in model.modules():
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    return model


def picture() -> torch.Tensor:
    return torch.randn(4, 3, 16, 16)


def reconstruction_loss(model: Any, batch: Any) -> torch.Tensor:
    code = model.encode(batch).latent_dist
    return (model.decode(code.mode()).sample - batch).square().mean() + 1e-3 * code.kl().mean()


UNET = {"sample_size": 16, "block_out_channels": (8, 16), "layers_per_block": 1}
UNET |= {"norm_num_groups": 4, "in_channels": 3, "out_channels": 3}

# torch_geometric: two graphs in one, to be cut into the two


def network(name: str, **settings: Any) -> nn.Module:
    """A network of torch_geometric by the name of its class."""
    import torch_geometric.nn

    return getattr(torch_geometric.nn, name)(6, 8, 2, 3, **settings)


def graph() -> dict[str, torch.Tensor]:
    nodes = 7
    pairs = torch.randperm(nodes * nodes)[:16]
    pairs = pairs[pairs // nodes != pairs % nodes][:9]  # no loops
    return {
        "x": torch.randn(nodes, 6),
        "edges": torch.stack([pairs // nodes, pairs % nodes]),
        "y": torch.randint(3, (nodes,)),
        "kind": torch.randint(3, (1,)),
    }


def two_graphs() -> tuple[dict[str, torch.Tensor], ...]:
    return graph(), graph()


def joined(graphs: Any) -> dict[str, torch.Tensor]:
    """One graph of several, with the number of the graph that each node belongs to."""
    starts = [sum(len(g["x"]) for g in graphs[:i]) for i in range(len(graphs))]
    return {
        **{name: torch.cat([g[name] for g in graphs]) for name in ("x", "y", "kind")},
        "edges": torch.cat([g["edges"] + a for g, a in zip(graphs, starts, strict=True)], 1),
        "graph": torch.cat([torch.full((len(g["x"]),), i) for i, g in enumerate(graphs)]),
    }


def one_by_one(graphs: Any) -> fl.data.Micro:
    return fl.data.Micro(tuple((each,) for each in graphs))


def node_loss(model: Any, batch: Any) -> fl.Mean:
    whole = joined(batch)
    scores = model(whole["x"], whole["edges"])
    return fl.Mean(F.cross_entropy(scores, whole["y"], reduction="sum"), len(scores))


class Pooled(nn.Module):
    """A network of nodes, its result summed over the nodes of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = network("GIN")

    def forward(self, whole: dict[str, torch.Tensor], size: int) -> torch.Tensor:
        from torch_geometric.nn import global_mean_pool

        nodes = self.nodes(whole["x"], whole["edges"])
        return global_mean_pool(nodes, whole["graph"], size=size)


def graph_loss(model: Any, batch: Any) -> fl.Mean:
    whole = joined(batch)
    scores = model(whole, len(batch))
    return fl.Mean(F.cross_entropy(scores, whole["kind"], reduction="sum"), len(batch))


GRAPHS = {"batch": two_graphs, "cut": one_by_one}
LOOPS = {"refused": "the shape of a result depends on values", "tests": "looks for self-loops"}
NO_LOOPS = "add_self_loops=False: adding them looks for those that are there"

# PyTorch itself


class Tagger(nn.Module):
    """A recurrent network over padded sequences."""

    def __init__(self, cell: type = nn.LSTM) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8, padding_idx=0)
        self.cell = cell(8, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(self.embedding(x))[0])


class Packed(Tagger):
    """The same over packed sequences."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        packed = rnn.pack_padded_sequence(
            self.embedding(x), (x > 0).sum(1), batch_first=True, enforce_sorted=False
        )
        output, _ = rnn.pad_packed_sequence(
            self.cell(packed)[0], batch_first=True, total_length=x.shape[1]
        )
        return self.head(output)


class Checkpointed(nn.Module):
    """Layers that are computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).layers
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return self.head(x)


def tagged() -> dict[str, torch.Tensor]:
    mask = torch.arange(9) < torch.randint(3, 10, (4, 1))
    return {"x": torch.randint(1, 20, (4, 9)) * mask, "y": torch.randint(1, 5, (4, 9)) * mask}


def tag_loss(model: Any, batch: Any) -> fl.Mean:
    """The mean over all that is not padding."""
    losses = F.cross_entropy(model(batch["x"]).transpose(1, 2), batch["y"], reduction="none")
    mask = (batch["x"] > 0).float()
    return fl.Mean((losses * mask).sum(), mask.sum())


def letters_loss(model: Any, batch: Any) -> fl.Mean:
    """CTC on padded targets."""
    scores = model(batch["x"]).log_softmax(-1).transpose(0, 1)
    frames = (batch["x"] > 0).sum(1)
    total = F.ctc_loss(
        scores, batch["y"][:, :3], frames, frames.clamp(max=2), reduction="sum", zero_infinity=True
    )
    return fl.Mean(total, len(frames))


def _torch(name: str, build: Any, loss: Any, tests: str, **more: Any) -> Entry:
    return Entry(name, "torch", build, tagged, loss, tests, **more)


OTHERS = [
    Entry("unet", "diffusers", lambda: diffuser(
        "UNet2DModel", **UNET, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8),
        noisy, noise_loss, "diffusion"),
    Entry("unet with prompts", "diffusers", lambda: diffuser(
        "UNet2DConditionModel", **UNET, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16,
        attention_head_dim=2), prompted, noise_loss, "diffusion, cross-attention"),
    Entry("dit", "diffusers", dit, labelled, noise_loss, "diffusion by a transformer"),
    Entry("vae", "diffusers", lambda: diffuser(
        "AutoencoderKL", block_out_channels=(8, 16), latent_channels=2, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2),
        picture, reconstruction_loss, "methods other than forward"),
    Entry("gcn", "torch_geometric", lambda: network("GCN", add_self_loops=False),
          loss=node_loss, tests="nodes", remedy=NO_LOOPS, inductor=True, **GRAPHS),
    Entry("gat", "torch_geometric", lambda: network("GAT", add_self_loops=False),
          loss=node_loss, tests="attention along edges", remedy=NO_LOOPS, **GRAPHS),
    Entry("gcn, self-loops", "torch_geometric", lambda: network("GCN"), loss=node_loss,
          **LOOPS, **GRAPHS),
    Entry("gat, self-loops", "torch_geometric", lambda: network("GAT"), loss=node_loss,
          **LOOPS, **GRAPHS),
    Entry("graphsage", "torch_geometric", lambda: network("GraphSAGE"),
          loss=node_loss, tests="nodes", **GRAPHS),
    Entry("gin, pooled", "torch_geometric", Pooled,
          loss=graph_loss, tests="a result for each graph",
          remedy="global_mean_pool(..., size=): otherwise it looks for the number of graphs",
          **GRAPHS),
    _torch("lstm", Tagger, tag_loss, "recurrent, padded"),
    _torch("gru", lambda: Tagger(nn.GRU), tag_loss, "recurrent, padded"),
    _torch("lstm, packed", Packed, tag_loss, "recurrent, packed",
           refused="the shape of a packed sequence"),
    _torch("lstm, CTC", Tagger, letters_loss, "F.ctc_loss",
           refused="F.ctc_loss depends on the lengths"),
    _torch("transformer, checkpointed", Checkpointed, tag_loss, "activation checkpointing",
           remedy="use_reentrant=False"),
]  # fmt: skip
