"""A process that measures when it is asked, over pipes. Needs nothing but Python."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Worker:
    """A process that runs `serve`; use it in a ``with``.

    Args:
        command: Starts it.
        environment: What differs from this process's.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer to a question.

        Raises:
            RuntimeError: It could not answer.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: there will be no line
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The worker ended with {self._process.wait()}.")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def block(self, n: int) -> float:
        """Ask for so many steps; the seconds that they took."""
        return self.ask(do="run", steps=n)["seconds"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()  # no more questions: it ends


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer until there are no more questions. What libraries print goes to the errors."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        for line in sys.stdin:
            try:
                found = answer(json.loads(line))
            except Exception:
                found = {"error": traceback.format_exc()}
            out.write(json.dumps(found) + "\n")
            out.flush()
