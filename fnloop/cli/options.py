"""The options of each command, but for the flags of a recipe."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser

from fnloop.cli.commands import YIELDING

_RECIPE = "a Python file with a function recipe(...) -> fl.Recipe; its parameters are flags"
_RUN = "the folder of a run, or of a sweep"
_MOVED = "where the recipe is now, if it moved"
_WHICH = (
    'which checkpoint: "best", "latest" or its folder; default the best if one was monitored, '
    "and of a sweep the latest"
)
_EITHER = "a checkpoint, or the folder of a run or a sweep"
_NEEDED = "a sweep needs one"


def _recipe(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", metavar="RECIPE.py", default=SUPPRESS, help=_RECIPE)
    parser.add_argument(
        "--config",
        action="config",
        metavar="FILE.yaml",
        help="values of flags, as fit leaves them in a run's config.yaml; it may name the recipe. "
        "Several are put together, the later ones over the earlier",
    )
    what = "also read flags from environment variables, --lr from PREFIX_LR, over configurations"
    _option(parser, "--env", "PREFIX", str, what)


def _fit(parser: ArgumentParser) -> None:
    _recipe(parser)
    switch(parser, "--resume", "go on with the run in the recipe's folder, if there is one")
    switch(parser, "--overwrite", "start over: delete the checkpoints of the run in that folder")
    switch(parser, "--smoke", "go through everything once, on two batches, and leave no file")
    _deterministic(parser)
    _many(parser)
    switch(parser, "--print-config", "print the configuration and exit")


def _resume(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run",
        metavar="RUN",
        help="the folder of a run; its flags may be given anew (of a sweep: fnloop sweep --resume)",
    )
    parser.add_argument("--config", action="config", help=SUPPRESS)
    _option(parser, "--recipe", "RECIPE.py", str, _MOVED)
    _deterministic(parser)
    _many(parser)


def _evaluate(parser: ArgumentParser) -> None:
    _evaluated(parser, "default all, in a table")


def _evaluated(parser: ArgumentParser, default: str) -> None:
    parser.add_argument("run", metavar="RUN", help=_RUN)
    _member(parser, default)
    _option(parser, "--checkpoint", "WHICH", str, _WHICH)
    _option(parser, "--recipe", "RECIPE.py", str, _MOVED)


def _predict(parser: ArgumentParser) -> None:
    _evaluated(parser, _NEEDED)
    what = (
        "a folder, for .npy files, or a file called .parquet: batch by batch, and the same "
        "command goes on if it is killed; or a file called .csv, .npy or .npz; by default CSV is "
        "printed"
    )
    _option(parser, "--output", "PLACE", str, what)


def _completion(parser: ArgumentParser) -> None:
    what = 'which one; its startup file reads the output: eval "$(fnloop completion bash)"'
    parser.add_argument("shell", metavar="bash|zsh|fish", help=what)


def _runs(parser: ArgumentParser) -> None:
    what = 'runs, or folders with runs in them; default "runs"'
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help=what)
    what = "which metrics to show; default the monitored ones, else the loss"
    _option(parser, "--metric", "NAME,NAME", str, what)
    _option(parser, "--sort", "COLUMN", str, "order by a metric or a flag; default by folder")
    what = "draw the metrics of all runs together: a .png, .pdf or .svg file"
    _option(parser, "--plot", "FILE", str, what)


def _show(parser: ArgumentParser) -> None:
    parser.add_argument("path", metavar="CHECKPOINT_OR_RUN", help=_EITHER)
    _member(parser, "default all together")


def _diff(parser: ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a checkpoint, or a run's folder: then its latest")
    parser.add_argument("b", metavar="B", help="another")
    what = "of sweeps: a member of each, by its number or best; or two, as in 0,3: of A and of B"
    _option(parser, "--member", "I|best", str, what)


def _replay(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=_RUN)
    what = "which one, in batches drawn: the first is 1; default the first that was skipped"
    _option(parser, "--step", "N", int, what)
    _member(parser, _NEEDED)
    what = "where to begin; default the nearest checkpoint before, else the initial state"
    _option(parser, "--checkpoint", "PATH", str, what)
    _option(parser, "--recipe", "RECIPE.py", str, _MOVED)
    what = "also write the batch, the gradients, and the state before and after"
    _option(parser, "--save", "FILE.safetensors", str, what)


def _export(parser: ArgumentParser) -> None:
    parser.add_argument("path", metavar="CHECKPOINT_OR_RUN", help=_EITHER)
    _member(parser, _NEEDED)
    parser.add_argument(
        "--output",
        metavar="FILE",
        required=True,
        help="a file called .safetensors, .pt or .pth (a plain state_dict)",
    )
    what = "take averaged parameters, as in --params ema; default the live ones"
    _option(parser, "--params", "SLOT", str, what)
    what = "fp32, bf16 or fp16 for all floating-point tensors; default as they are"
    _option(parser, "--dtype", "DTYPE", str, what)
    switch(parser, "--force", "write over a file that is there")
    _option(parser, "--checkpoint", "WHICH", str, _WHICH)
    _option(parser, "--recipe", "RECIPE.py", str, _MOVED)


def _summary(parser: ArgumentParser) -> None:
    _recipe(parser)
    what = "how many levels of modules to show below the model; default 2"
    _option(parser, "--levels", "N", int, what)
    _option(parser, "--ranks", "N", int, "of a sharded step: tell of so many processes")


def _sweep(parser: ArgumentParser) -> None:
    _recipe(parser)
    _option(parser, "--seeds", "N", int, "train each combination from N seeds; default 1")
    switch(parser, "--loop", "one member after the other, for steps that cannot be vmapped")
    _option(parser, "--chunk", "K", int, "K members at a time, where memory is short")
    what = "draw the result over one or two swept flags: a .png, .pdf or .svg file"
    _option(parser, "--plot", "FILE", str, what)
    switch(parser, "--resume", "go on with this sweep in its folder, if it is there")
    switch(parser, "--overwrite", "start over: delete the checkpoints in that folder")


def _profile(parser: ArgumentParser) -> None:
    _recipe(parser)
    _option(parser, "--trace", "FILE", str, "a .json or .json.gz file for https://ui.perfetto.dev")
    what = "draw time, memory and its tensors: a .png, .pdf or .svg file"
    _option(parser, "--plot", "FILE", str, what)


def _find_lr(parser: ArgumentParser) -> None:
    _recipe(parser)
    what = "which learning rate, as reported: head.adamw.lr; default the only one"
    _option(parser, "--of", "NAME", str, what)
    _option(parser, "--from", "LR", float, "the first candidate; default 1e-7")
    _option(parser, "--to", "LR", float, "the last candidate; default 10")
    _option(parser, "--candidates", "N", int, "how many, one a step; default 100")
    _option(parser, "--plot", "FILE", str, "also draw the losses: a .png, .pdf or .svg file")


def _find_batch_size(parser: ArgumentParser) -> None:
    _recipe(parser)
    _option(parser, "--of", "FLAG", str, "the recipe's flag to find; default batch_size")
    _option(parser, "--from", "N", int, "the first size, which is doubled; default 2")
    _option(parser, "--to", "N", int, "the largest size to try; default 8192")
    what = "power (default) stops where doubling does not fit; binary goes on between the last two"
    _option(parser, "--search", "power|binary", str, what)


def _new(parser: ArgumentParser) -> None:
    parser.add_argument("what", metavar="WHAT", help="stage, optimizer, callback, effect, tracker")
    parser.add_argument(
        "name", metavar="NAME", help="writes NAME.py and test_NAME.py, if not there"
    )
    what = "of a stage: between fl.grad and fl.update (default), around fl.update, or a callback"
    _option(parser, "--kind", "grad|step|callback", str, what)


def _member(parser: ArgumentParser, default: str) -> None:
    what = "of a sweep: a member, by its number in the sweep's table, or best, the first there; "
    _option(parser, "--member", "I|best", str, what + default)


def yielding(parser: ArgumentParser, command: str, name: str) -> None:
    _option(parser, f"--{name}", "N", int, YIELDING[command][name])


def _many(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--nproc",
        metavar="N",
        type=int,
        default=SUPPRESS,
        help="train in N processes of this machine; the recipe's step is fl.shard(step, fl.mesh())",
    )


def _deterministic(parser: ArgumentParser) -> None:
    switch(parser, "--deterministic", "the same bits from run to run, on a GPU too")


def _option(parser: ArgumentParser, name: str, value: str, kind: type, help: str) -> None:
    typed: dict[str, Any] = {} if kind is str else {"type": kind}
    parser.add_argument(name, metavar=value, default=SUPPRESS, help=help, **typed)


def switch(parser: ArgumentParser, name: str, help: str) -> None:
    parser.add_argument(name, action="store_true", default=SUPPRESS, help=help)


OPTIONS: dict[str, Callable[[ArgumentParser], None]] = {
    "fit": _fit,
    "resume": _resume,
    "validate": _evaluate,
    "test": _evaluate,
    "predict": _predict,
    "completion": _completion,
    "runs": _runs,
    "show": _show,
    "diff": _diff,
    "replay": _replay,
    "export": _export,
    "summary": _summary,
    "sweep": _sweep,
    "profile": _profile,
    "find-lr": _find_lr,
    "find-batch-size": _find_batch_size,
    "new": _new,
}
