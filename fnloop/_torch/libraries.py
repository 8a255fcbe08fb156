"""Machine code of recorded graphs, found on disk by what it was compiled from.

Inductor keeps what it compiles, but looks it up only after it has traced the graph once more, by
code that takes longer to import than most graphs take to record. A graph for the CPU is one library
in the end. Its path is kept in Inductor's folder, in a file whose name is a hash of the graph and
of all else that the code depends on, and a second start loads the library without Inductor.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

Runnable = Callable[[list[Tensor]], Sequence[Any]]
"""A function from a list of tensors, which it may empty, to the results."""

_aoti: Any = torch._C._aoti  # pyright: ignore
_ENTRY = "inductor_entry_cpp"
_TORCH = Path(torch.__file__).parent


def key_of(graph: GraphModule, inputs: Sequence[Tensor], options: Mapping[str, Any]) -> str | None:
    """A hash of all that a graph's machine code depends on; None if that is not known.

    Args:
        graph: As it is given to Inductor.
        inputs: The fake tensors that it was traced with.
        options: Inductor's options.
    """
    if _set():
        return None
    try:
        about = [*map(_tensor, inputs), dict(options), *_ambient()]
        text = [_told(about, {}), *_lines(graph)]
    except _Unknown:
        return None
    return hashlib.sha256("\n".join(text).encode()).hexdigest()


def _set() -> bool:
    """Whether the user has set something about Inductor: its folder apart, it is asked each time.

    That may be to compile anew, to look at the compiler, or something that the code depends on.
    """
    variables = [name for name in os.environ if name.startswith(_VARIABLES) and name != _FOLDER]
    return bool(variables) or any(map(_is_changed, _SETTINGS))


_VARIABLES = ("TORCHINDUCTOR_", "TORCH_LOGS", "TORCH_TRACE", "TORCH_COMPILE")
_FOLDER = "TORCHINDUCTOR_CACHE_DIR"
_SETTINGS = ("torch._inductor.config", "torch._functorch.config", "torch.compiler.config")


def _is_changed(name: str) -> bool:
    """Whether the program has changed settings in a module; if it is not imported, nobody has."""
    module: Any = sys.modules.get(name)
    if module is None:
        return False
    given = module._get_dict(skip_default=True)
    return any([value != module._config[setting].default for setting, value in given.items()])


def found(key: str) -> Runnable | None:
    """The machine code that was kept by a key; None if there is none."""
    try:
        return load(Path(json.loads(_file(key).read_text())))
    except (OSError, ValueError, ImportError):
        return None


def keep(key: str, compiled: Any) -> None:
    """Keep the machine code of a graph by its key, where it is one library and nothing else."""
    library = _library(compiled)
    if library is None:
        return
    try:
        file = _file(key)
        part = file.with_suffix(f".{os.getpid()}")
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(str(library)))
        part.replace(file)
    except OSError:
        return  # the next start compiles again


def load(library: Path) -> Runnable:
    """The function of a library that Inductor has made, on tensors.

    Raises:
        ImportError: It is missing or damaged.
    """
    pointer = torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr  # pyright: ignore
    os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(pointer)  # it asks for this
    name = f"{library.stem}.{_ENTRY}"
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.spec_from_file_location(name, library)
        if spec is None or spec.loader is None:
            raise ImportError(f"{library} is no library")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    entry = getattr(module, _ENTRY)

    def run(given: list[Tensor]) -> Sequence[Any]:
        handles = _aoti.unsafe_alloc_void_ptrs_from_tensors(given)
        given.clear()
        return _aoti.alloc_tensors_by_stealing_from_void_ptrs(entry(handles))

    return run


def _library(compiled: Any) -> Path | None:
    """The library that is all there is to a graph; None if it is called in another way than `run`.

    Constants would be handed to it too, and results may be made numbers.
    """
    call = compiled.current_callable
    handed = compiled.constants or compiled.torchbind_constants
    if handed or len(call.__closure__ or ()) != 1 or not _only_converts(call):
        return None
    return Path(call.__closure__[0].cell_contents.__self__.__file__)


def _only_converts(call: Any) -> bool:
    """Whether Inductor's function around a library's entry does just what `run` does.

    Its text differs from one PyTorch to the next. So its code is called around an entry that
    returns the handles that it is given: two tensors go in, and they alone must come out.
    """
    entry = CellType(lambda handles: handles)
    inputs = [torch.zeros(1), torch.ones(1)]
    given = list(inputs)
    try:
        results = FunctionType(call.__code__, call.__globals__, closure=(entry,))(given)
    except IndexError:  # it picks among more results
        return False
    tensors = len(results) == 2 and all([isinstance(result, Tensor) for result in results])
    return not given and tensors and all(map(torch.equal, results, inputs))


def _file(key: str) -> Path:
    return Path(_places().cache_dir()) / "fnloop" / key


@functools.cache
def _places() -> Any:
    """PyTorch's module that knows the folder; imported as a part of Inductor it takes a second."""
    file = _TORCH / "_inductor" / "runtime" / "cache_dir_utils.py"
    spec: Any = importlib.util.spec_from_file_location("fnloop._torch.cache_dir_utils", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Unknown(Exception):
    """Something whose text may not be all that code depends on."""


def _lines(graph: GraphModule) -> Iterator[str]:
    """The operations of a graph, one a line."""
    names: dict[Node, str] = {}
    for i, node in enumerate(graph.graph.nodes):
        names[node] = f"%{i}"
        what = str(node.target) if node.op == "call_function" else ""
        if node.op == "call_function" and getattr(node.target, "namespace", "") not in _NAMESPACES:
            if node.target.__module__ != "_operator":
                raise _Unknown(node.target)
        elif node.op == "get_attr":
            what = _constant(getattr(graph, str(node.target)))
        elif node.op not in ("call_function", "placeholder", "output"):
            raise _Unknown(node.op)
        yield f"{node.op} {what} {_told(node.args, names)} {_told(node.kwargs, names)}"


_NAMESPACES = ("aten", "prims")  # others have an author who may change what they are compiled to


def _told(value: Any, names: Mapping[Node, str]) -> str:
    """A text that is the same in another process for the same value, and for no other."""
    if isinstance(value, Node):
        return names[value]
    if isinstance(value, (tuple, list)):
        return f"[{', '.join([_told(each, names) for each in value])}]"
    if isinstance(value, dict):
        items = [f"{_told(k, names)}: {_told(v, names)}" for k, v in value.items()]
        return f"{{{', '.join(items)}}}"
    if value is not None and type(value) not in _PLAIN:
        raise _Unknown(value)
    return repr(value)


_KINDS = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_PLAIN = {bool, int, float, complex, str, *_KINDS}


def _tensor(value: Any) -> Any:
    """How a tensor lies in memory."""
    return [tuple(value.shape), value.stride(), value.dtype, value.device]


def _constant(value: Any) -> str:
    """A tensor that is a part of the graph, with its values."""
    if type(value) is not Tensor or not value.is_cpu or value.layout is not torch.strided:
        raise _Unknown(value)
    values = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return _told([*_tensor(value), hashlib.sha256(values).hexdigest()], {})


def _ambient() -> list[Any]:
    """What code depends on besides its graph and options."""
    mkldnn: Any = torch.backends.mkldnn
    precisions = [getattr(mkldnn, name).fp32_precision for name in ("matmul", "conv", "rnn")]
    return [
        *(str(torch.__version__), torch.version.git_version, sys.version, _compiler()),
        *(platform.machine(), torch.backends.cpu.get_cpu_capability()),
        dict(getattr(torch.cpu, "get_capabilities", dict)()),
        *(torch.get_num_threads(), torch.get_default_dtype()),
        *(torch.are_deterministic_algorithms_enabled(), _filled()),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        *(mkldnn.fp32_precision, *precisions),
        torch._C._get_mkldnn_enabled(),  # pyright: ignore
        sorted([item for item in os.environ.items() if item[0].startswith(_READ)]),
    ]


_READ = ("CXX", "ATEN_", "MKL_", "DNNL_", "ONEDNN_")


def _filled() -> bool:
    return torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


@functools.cache
def _compiler() -> str:
    """Which files PyTorch's compiler is: somebody may have changed them."""
    known = hashlib.sha256()
    for part in ("_inductor", "_functorch", "_decomp", "_refs", "_prims"):
        for folder, _, files in sorted(os.walk(_TORCH / part)):
            for file in sorted([f for f in files if f.endswith(".py")]):
                about = os.stat(os.path.join(folder, file))
                known.update(f"{folder}/{file} {about.st_size} {about.st_mtime_ns}\n".encode())
    return known.hexdigest()
