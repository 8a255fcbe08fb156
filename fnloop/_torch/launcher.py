"""torchrun's launcher, in this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence


def launch(module: str, arguments: Sequence[str], count: int) -> tuple[int, int, int]:
    """Run a module in `count` processes that train together, and wait for them.

    Returns:
        The exit code; and if a process has failed, the first one's rank and its own exit code,
        below zero for a signal. Else -1 and 0.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in [*logging.root.manager.loggerDict]:  # each has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
    options = ["--standalone", f"--nproc-per-node={count}", "--module", module, *arguments]
    try:
        run.run(run.parse_args(options))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        return (code if code > 0 else 128 - code), rank, code
    except SignalException as ended:
        return 128 + ended.sigval, -1, 0
    return 0, -1, 0
