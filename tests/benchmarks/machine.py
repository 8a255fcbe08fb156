"""What the numbers were measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

LIBRARIES = ("torch", "jax", "optax", "pytorch-lightning", "accelerate")


def description() -> dict[str, str]:
    """Processor, cores, versions and date."""
    return {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()}, Python {platform.python_version()}",
        **versions(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


def processor() -> str:
    """Its name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    names = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in names if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def commit() -> str:
    """Of this clone, and whether files are changed beside it; or that it is none."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=, changed"]
    found = subprocess.run(words, capture_output=True, text=True)
    return found.stdout.strip() or "not a clone"


def versions() -> dict[str, str]:
    """Of the libraries that take part and are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def limit(threads: int) -> None:
    """Let every library compute with so many threads. Call it before JAX is imported.

    XLA has no setting for this that is documented: it makes a pool of ``NPROC`` threads, and lets
    Eigen use it. The thread that calls JAX comes on top, and mostly waits.
    """
    import torch

    torch.set_num_threads(threads)
    os.environ["NPROC"] = str(threads)
    if threads == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
