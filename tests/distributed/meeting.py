"""Join the mesh, and print what all ranks say: run by ``test_launch.py``.

``python meeting.py [BACKEND]``: with a backend the program joins a process group before.
"""

from __future__ import annotations

import logging
import sys
import warnings

import torch
import torch.distributed as dist

import fnloop as fl

if __name__ == "__main__":
    if len(sys.argv) > 1:
        dist.init_process_group(sys.argv[1])
    mesh = fl.mesh(timeout=60)
    warnings.warn("a warning of all ranks", stacklevel=1)
    logging.getLogger("fnloop").warning("a log of all ranks")
    print(mesh.exchange(mesh.rank), int(mesh.sum(torch.tensor(mesh.rank + 1))), flush=True)
