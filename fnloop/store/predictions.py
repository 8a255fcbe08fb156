"""Predictions on their way to a folder of ``.npy`` files, or to a Parquet file.

They are written to ``<to>.unfinished``, and get their name when all of them are on the disk: what
is called ``<to>`` was complete.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fnloop.store import parquet_file
from fnloop.store.batch_files import FORMAT, LOG, BatchFiles, Columns
from fnloop.store.columns import INDEX
from fnloop.store.files import Disk, as_path, write_all, written
from fnloop.store.growing_array import GrowingArray
from fnloop.store.lock_owner import Owner, read_owner
from fnloop.store.run_lock import LOCK, Lock
from fnloop.values.cursor import Cursor

MANIFEST = "predictions.json"
_BLOCK = 32 * 2**20  # bytes of a row group
_PARTS = "rank-*-of-*[0-9]"  # folders of one rank each


class Predictions:
    """Where predictions go.

    Args:
        to: A folder, for a ``.npy`` file of each output; or a file called ``.parquet``.

    Attributes:
        target: That place.
        work: Where they are until all are there.

    Raises:
        ValueError: It is neither.
        ImportError: pyarrow is needed and not installed.
    """

    def __init__(self, to: str | os.PathLike[str]) -> None:
        self.target = as_path(to)
        self._parquet = self.target.suffix == ".parquet"
        remote = hasattr(self.target, "fs") or not self.target.name
        if remote or self.target.suffix in (".npy", ".npz", ".csv"):
            raise ValueError(
                f"predict(..., to={str(to)!r}): expected a folder on a disk, in which each output "
                "is a .npy file, or a file called .parquet."
            )
        if self._parquet:
            parquet_file.arrow()
        self.work = self.target.with_name(f"{self.target.name}.unfinished")

    def about(self) -> Any:
        """What those in `target` are of, if they are there; else None.

        Raises:
            FileExistsError: Something else is there.
        """
        if not self.target.exists() or self._is_empty():
            return None
        found = parquet_file.about_parquet(self.target) if self._parquet else self._manifest()
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise FileExistsError(
                f"{self.target} is there, and holds no predictions of fnloop. Nothing is "
                "overwritten: choose another place."
            )
        return found["about"]

    def sweep(self) -> None:
        """Remove what is not needed once all are in `target`."""
        if self._parquet:
            if self.work.exists():
                shutil.rmtree(self.work)
            return
        for name in (LOG, LOCK):
            (self.target / name).unlink(missing_ok=True)
        for folder in self.target.glob(_PARTS):
            shutil.rmtree(folder)

    def first(self, rows: int) -> Columns:
        """The first rows in `target`."""
        if self._parquet:
            found = parquet_file.first_rows(self.target, rows)
        else:
            names = self._manifest()["outputs"]
            found = {n: np.load(self._file(n), mmap_mode="r")[:rows] for n in names}
        return {name: rows for name, rows in found.items() if name != INDEX}

    @contextlib.contextmanager
    def part(self, about: Any, rank: int = 0, ranks: int = 1) -> Generator[BatchFiles]:
        """The batches of one rank that are there, to add more.

        Raises:
            FileExistsError: Another process writes there; or another number of them has begun.
        """
        self._check_begun(ranks)
        folder = self.work if ranks == 1 else _part(self.work, rank, ranks)
        with self._locked(folder):
            files = BatchFiles(folder, about)
            try:
                with files:
                    yield files
            finally:
                if not files.batches:
                    self._drop(folder)

    def add(self, part: BatchFiles, columns: Columns, cursor: Cursor) -> None:
        """Add the outputs of a batch, as in `BatchFiles.append`.

        Raises:
            ValueError: They cannot be written.
        """
        if self._parquet and not part.batches:
            parquet_file.schema_of({name: (a.dtype, a.shape[1:]) for name, a in columns.items()})
        part.append(columns, cursor)

    def finish(self, part: BatchFiles) -> Path:
        """Give a part with all batches its name, and return that."""
        disk, made = Disk(), self.work
        part.finish()
        about = {"format": FORMAT, "about": part.about, "rows": part.rows}
        if self._parquet:
            made = self.work / "made.parquet"
            kinds = {INDEX: (np.dtype("<i8"), ()), **part.kinds}
            parquet_file.write_parquet(made, kinds, _blocks(part), about)
        else:
            self._put_index(part.rows)
            outputs = {n: {"dtype": k.str, "shape": list(s)} for n, (k, s) in part.kinds.items()}
            self._put_manifest({**about, "outputs": outputs})
            with contextlib.suppress(OSError):
                self.target.rmdir()  # it is empty
        part.close()  # Windows renames no folder of open files
        disk.rename(made, self.target)
        disk.sync(self.target.parent)
        self.sweep()
        return self.target

    def join(self, about: Any, ranks: int) -> Path:
        """`finish` the parts of all ranks as one, in the order of the batches."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._locked(self.work))
            whole = stack.enter_context(BatchFiles(self.work, about))
            parts = list[BatchFiles]()
            for rank in range(ranks):
                folder = _part(self.work, rank, ranks)
                folder.mkdir(exist_ok=True)  # there is none of a rank that had no batch
                parts.append(stack.enter_context(BatchFiles(folder)))
            for batch in itertools.islice(_in_turn(parts), whole.batches, None):
                whole.append(*batch)
            for part in parts:
                part.close()
            return self.finish(whole)

    def _is_empty(self) -> bool:
        return self.target.is_dir() and not any(self.target.iterdir())

    def _file(self, name: str) -> Path:
        return self.target / f"{name}.npy"

    def _manifest(self) -> Any:
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.target / MANIFEST).read_text(encoding="utf-8"))
        return None

    def _put_index(self, rows: int) -> None:
        index = GrowingArray(self.work / f"{INDEX}.npy", np.dtype("<i8"), ())
        for numbers in _numbers(rows, _BLOCK // 8):
            index.append(numbers)
        index.finish()
        index.close()

    def _put_manifest(self, manifest: Mapping[str, Any]) -> None:
        disk, file = Disk(), self.work / f"{MANIFEST}.tmp"
        file.unlink(missing_ok=True)
        with written(disk, file) as output:
            write_all(output, json.dumps(manifest, indent=1).encode() + b"\n")
        disk.rename(file, self.work / MANIFEST)
        disk.sync(self.work)

    def _check_begun(self, ranks: int) -> None:
        parts = {int(path.name.rpartition("-")[2]) for path in self.work.glob(_PARTS)}
        if not parts and (self.work / LOG).exists():
            parts = {1}
        if parts - {ranks}:
            raise FileExistsError(
                f"{self.work} was begun by {max(parts - {ranks})} processes, and now there are "
                f"{ranks}. Go on with as many, or delete it to start over."
            )

    @contextlib.contextmanager
    def _locked(self, folder: Path) -> Generator[None]:
        os.makedirs(folder, exist_ok=True)
        lock = Lock(folder, Disk())
        try:
            lock.take()
        except FileExistsError as error:
            owner = read_owner(folder / LOCK, Disk())
            who = f" by {owner}" if isinstance(owner, Owner) else ""
            lock.release()
            raise FileExistsError(
                f"{self.target} is being written{who}. Wait for it, end it, or choose another "
                "place. Ranks that predict together say so: fl.predict(..., mesh=fl.mesh())."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _drop(self, folder: Path) -> None:
        """Remove a folder without a batch, and those above it that are empty then."""
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):
            self.work.rmdir()


def _part(work: Path, rank: int, ranks: int) -> Path:
    return work / f"rank-{rank}-of-{ranks}"


def _in_turn(parts: list[BatchFiles]) -> Iterator[tuple[Columns, Cursor]]:
    batches = [part.each() for part in parts]
    for own in itertools.cycle(batches):
        batch = next(own, None)
        if batch is None:
            return
        yield batch


def _blocks(part: BatchFiles) -> Iterator[Columns]:
    row = 8 + sum(kind.itemsize * int(np.prod(shape)) for kind, shape in part.kinds.values())
    for numbers in _numbers(part.rows, max(1, _BLOCK // row)):
        yield {INDEX: numbers, **part.read(int(numbers[0]), len(numbers))}


def _numbers(rows: int, most: int) -> Iterator[np.ndarray[Any, Any]]:
    for start in range(0, rows, most):
        yield np.arange(start, min(start + most, rows), dtype="<i8")
