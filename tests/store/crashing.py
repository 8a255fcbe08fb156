"""File systems in memory that stop at any moment: what a disk may hold after the power is lost.

The model is that of POSIX and no better. A file's bytes are safe once the file was synchronised, a
name once its folder was. Of everything else the disk holds any part: for each change of a name
whether it was made or not, whatever came before or after it; for the bytes of each file one of
`CONTENTS`. A change of names (a rename too) is made whole or not at all, as on file systems with a
journal.
"""

from __future__ import annotations

import copy
import errno
import io
import itertools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "kept": lambda data: data,
    "lost": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "zeroed": lambda data: bytes(len(data)),
    "end zeroed": lambda data: data[: len(data) - len(data) // 8] + bytes(len(data) // 8),
}
"""What may be on the disk of the bytes that were not synchronised."""

Image = dict[str, "bytes | None"]
"""All files and their bytes, and all folders (None), by path."""


class Node:
    """A file or a folder.

    Attributes:
        data: A file's bytes; of them the first `safe` ones are on the disk.
        entries: A folder's names as programs see them; `durable` are those on the disk.
    """

    def __init__(self, data: bytes | None = None) -> None:
        self.data, self.safe = data, 0 if data is None else len(data)
        self.entries: dict[str, Node] = {}
        self.durable: dict[str, Node] = {}

    @property
    def is_folder(self) -> bool:
        return self.data is None


Change = tuple[Node, "dict[str, Node | None]"]  # a folder, and what its names mean from then on


class Crashing:
    """A `fnloop.store.files.Files` whose power may be lost after any call.

    Args:
        image: What is on it, safely; by default only the root folder.
        watch: Called with this object after each call that has changed something.
        chunk: Bytes that a call of write takes at most.
        lies: "file" or "folder": it only pretends to synchronise those. "write": it takes half
            of what is written, and says that it was all.
    """

    renames = True

    def __init__(
        self,
        image: Image | None = None,
        watch: Callable[[Crashing], None] = lambda disk: None,
        chunk: int = 1 << 30,
        lies: str = "",
    ) -> None:
        self.root, self.watch, self.chunk, self.lies = Node(), watch, chunk, lies
        self.pending: list[Change] = []
        nodes = {"": self.root}
        for path, data in sorted((image or {}).items()):
            folder, _, name = path.rpartition("/")
            nodes[path] = Node(data)
            nodes[folder].entries[name] = nodes[folder].durable[name] = nodes[path]

    # The protocol of Files

    def names(self, folder: Path) -> list[str]:
        node = self._find(folder)
        return [] if node is None else list(node.entries)

    def exists(self, path: Path) -> bool:
        return self._find(path) is not None

    def make(self, folder: Path) -> None:
        self._new(folder, Node())

    def create(self, path: Path) -> Output:
        return Output(self, self._new(path, Node(b"")))

    def open(self, path: Path) -> io.BytesIO:
        node = self._at(path)
        if node.data is None:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return io.BytesIO(node.data)

    def rename(self, old: Path, new: Path) -> None:
        assert old.parent == new.parent, "the model knows no other renames"
        node, replaced = self._at(old), self._find(new)
        if replaced is not None and (replaced.entries or node.is_folder != replaced.is_folder):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(new))
        self._change(old.parent, {old.name: None, new.name: node})

    def remove(self, path: Path) -> None:
        if self._at(path).is_folder:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        self._change(path.parent, {path.name: None})

    def remove_folder(self, path: Path) -> None:
        if self._at(path).entries:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        self._change(path.parent, {path.name: None})

    def sync(self, folder: Path) -> None:
        node = self._at(folder)
        if self.lies != "folder":
            for changed, names in self.pending:
                if changed is node:
                    _apply(node.durable, names)
            self.pending = [change for change in self.pending if change[0] is not node]
            self._forget_what_is_gone()
        self.watch(self)

    def free(self, folder: Path) -> int | None:
        return None

    # What may be left

    def copy(self, watch: Callable[[Crashing], None]) -> Crashing:
        """Another one that goes on from here: what a killed process leaves to the next."""
        other = copy.copy(self)
        other.root, other.pending = copy.deepcopy((self.root, self.pending))
        other.watch = watch
        return other

    def image(self) -> Image:
        """What programs see: this is left if a process is killed, and the power stays."""
        return {path: node.data for path, node in _walk(self.root, lambda node: node.entries)}

    def crashes(self, most: int, chance: random.Random) -> Iterator[Image]:
        """What may be left if the power is lost now.

        Args:
            most: Combinations of changes of names, and of contents for each, at most: all if they
                are no more, otherwise the likeliest (in order up to some moment; all but one; one
                alone) and others by chance.
            chance: Where those come from.
        """
        for made in _subsets(len(self.pending), most, chance):
            entries: dict[Node, dict[str, Node]] = {}
            for i in sorted(made):
                folder, names = self.pending[i]
                _apply(entries.setdefault(folder, dict(folder.durable)), names)
            look = lambda folder, entries=entries: entries.get(folder, folder.durable)  # noqa: E731
            yield from self._contents(look, most, chance)

    def _contents(
        self, look: Callable[[Node], dict[str, Node]], most: int, chance: random.Random
    ) -> Iterator[Image]:
        dirty = [node for _, node in _walk(self.root, look) if node.safe < len(node.data or b"")]
        ways = list(itertools.product(CONTENTS.values(), repeat=len(dirty)))
        for way in ways if len(ways) <= most else chance.sample(ways, most):
            parts = dict(zip(dirty, way, strict=True))
            yield {path: _on_disk(node, parts) for path, node in _walk(self.root, look)}

    def _forget_what_is_gone(self) -> None:
        """Changes in folders that cannot be reached any more, whatever is made."""
        there, new = set[Node](), [self.root]
        while new:
            folder = new.pop()
            if folder in there:
                continue
            there.add(folder)
            new += folder.durable.values()
            new += [n for f, names in self.pending if f is folder for n in names.values() if n]
        self.pending = [change for change in self.pending if change[0] in there]

    # Names

    def _find(self, path: Path) -> Node | None:
        node = self.root
        for part in path.parts[1:]:
            if part not in node.entries:
                return None
            node = node.entries[part]
        return node

    def _at(self, path: Path) -> Node:
        node = self._find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return node

    def _new(self, path: Path, node: Node) -> Node:
        if self._find(path) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self._change(path.parent, {path.name: node})
        return node

    def _change(self, folder: Path, names: dict[str, Node | None]) -> None:
        node = self._at(folder)
        _apply(node.entries, names)
        self.pending.append((node, names))
        self.watch(self)


class Output:
    """A new file of a `Crashing`."""

    def __init__(self, disk: Crashing, node: Node) -> None:
        self.disk, self.node = disk, node

    def write(self, data: memoryview) -> int:
        taken = data[: self.disk.chunk]
        kept = taken[: len(taken) // 2] if self.disk.lies == "write" else taken
        self.node.data = (self.node.data or b"") + bytes(kept)
        self.disk.watch(self.disk)
        return len(taken)

    def sync(self) -> None:
        if self.disk.lies != "file":
            self.node.safe = len(self.node.data or b"")
        self.disk.watch(self.disk)

    def close(self) -> None:
        """It changes nothing."""


class Objects(Crashing):
    """A store without renames, where a file appears whole when it is closed, and is safe then."""

    renames = False

    def make(self, folder: Path) -> None:
        for path in [*reversed(folder.parents), folder]:
            if not self.exists(path):
                super().make(path)

    def create(self, path: Path) -> Upload:
        return Upload(self, path)

    def _change(self, folder: Path, names: dict[str, Node | None]) -> None:
        node = self._at(folder)
        for shown in (node.entries, node.durable):
            _apply(shown, names)
        self.watch(self)


class Upload:
    """A new file of `Objects`."""

    def __init__(self, store: Objects, path: Path) -> None:
        self.store, self.path, self.data = store, path, b""

    def write(self, data: memoryview) -> int:
        taken = data[: self.store.chunk]
        self.data += bytes(taken)
        return len(taken)

    def sync(self) -> None:
        """Nothing is there before the file is closed."""

    def close(self) -> None:
        self.store._change(self.path.parent, {self.path.name: Node(self.data)})


def _apply(entries: dict[str, Node], names: dict[str, Node | None]) -> None:
    for name, node in names.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def _walk(root: Node, look: Callable[[Node], dict[str, Node]]) -> Iterator[tuple[str, Node]]:
    todo = [("", root)]
    while todo:
        path, folder = todo.pop()
        for name, node in look(folder).items():
            yield f"{path}/{name}", node
            if node.is_folder:
                todo.append((f"{path}/{name}", node))


def _on_disk(node: Node, parts: dict[Node, Callable[[bytes], bytes]]) -> bytes | None:
    if node.data is None or node not in parts:
        return node.data
    return node.data[: node.safe] + parts[node](node.data[node.safe :])


def _subsets(size: int, most: int, chance: random.Random) -> Iterator[frozenset[int]]:
    everything = range(size)
    if 2**size <= most:
        for length in range(size + 1):
            yield from map(frozenset, itertools.combinations(everything, length))
        return
    none, *some, full = [frozenset(everything[:end]) for end in range(size + 1)]
    some += [frozenset(everything) - {one} for one in everything]
    some += [frozenset({one}) for one in everything]
    some = [*dict.fromkeys(some)]
    found = dict.fromkeys([none, full, *chance.sample(some, min(len(some), most - 2))])
    while len(found) < most:
        found[frozenset(one for one in everything if chance.random() < 0.5)] = None
    yield from found
