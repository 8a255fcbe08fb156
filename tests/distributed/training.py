"""A training that goes on from its last checkpoint, on however many ranks: for ``test_surviving``.

``python training.py FOLDER STEPS SECONDS [PLAN RUN]``: it notes each start, and the hash of its
last state. RUN is the folder of its checkpoints, which may be a URL.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import fnloop as fl
from fnloop.trees.paths import tree_paths


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def model():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def pipeline():
    """Dropout, an fp16 loss scale, twelve micro-batches, and an average."""
    return fl.pipe(
        loss,
        fl.grad,
        fl.accumulate(12),
        fl.amp("fp16"),
        fl.update(fl.optim.adamw(1e-2)),
        fl.ema(0.9),
    )


def data():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(100, 6, generator=g), torch.randint(0, 3, (100,), generator=g)
    return fl.Batches((x, y), 24, seed=1)


def digest(state):
    """One hash of all leaves; those of the step's own memory too."""
    found = hashlib.sha256()
    for path, leaf in zip(tree_paths(state), fl.tree_leaves(state), strict=True):
        found.update(path.encode() + leaf.detach().contiguous().view(-1).numpy().tobytes())
    return found.hexdigest()


def main(folder: Path, steps: int, seconds: float, plan="replicate", run=None) -> None:
    torch.set_num_threads(1)
    mesh, run = fl.mesh(timeout=60), run or folder / "run"
    step = fl.shard(pipeline(), mesh, plan, reduce="canonical")
    state = step.init(model, seed=3)

    def begin(state, metrics):  # after each step
        (folder / f"at-{mesh.rank}").write_text(str(int(state.cursor[2])))
        time.sleep(seconds)

    note = fl.effect(begin, ranks="all")
    saving = fl.checkpoint(run, every=1, unit="step")
    if mesh.rank == 0:
        with (folder / "starts").open("a") as starts:
            starts.write(f"{mesh.data}\n")
    state, history = fl.fit(step, state, data(), steps=steps, callbacks=[note, saving], resume=run)
    state = fl.gather(state)
    if mesh.rank == 0 and history.status == "completed":
        (folder / "end").write_text(digest(state))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:])
