"""Join the mesh, and print what all ranks say: run by ``test_launch.py``."""

from __future__ import annotations

import torch

import fnloop as fl

mesh = fl.mesh(timeout=60)
print(mesh.exchange(mesh.rank), int(mesh.sum(torch.tensor(mesh.rank + 1))), flush=True)
