"""``--model.help``: the classes that can be chosen for a flag, and the arguments of one."""

from __future__ import annotations

import pkgutil
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from fnloop.cli import parsers
from fnloop.cli.chosen import Choices
from fnloop.cli.chosen_errors import no_class, unfit_class
from fnloop.cli.class_names import found_at
from fnloop.cli.class_types import bases_of, is_chosen, path_of, record_of, taken_by
from fnloop.cli.flag_types import kind_text
from fnloop.cli.messages import shown, usage
from fnloop.cli.subclasses import known_classes


def asked_help(command: str, choices: Choices, arguments: Sequence[str]) -> str | None:
    """What ``--model.help``, or ``--model.help Net``, shows; None if it is not asked for.

    Args:
        command: Such as ``fnloop fit``.
        choices: The flags for which classes are chosen.
        arguments: Those of the command line.

    Raises:
        Problem: There is no such class.
    """
    for token, after in zip(arguments, [*arguments[1:], "--"], strict=True):
        option, equals, value = token.partition("=")
        *place, last = option.removeprefix("--").split(".")
        if last != "help" or not place or not is_chosen(choices.kind(place)):
            continue
        name = value if equals else "" if after.startswith("--") else after
        call = f"{command} {shown(choices.known.file)}"
        if name:
            return _of_class(call, choices, ".".join(place), name, choices.kind(place))
        return _of_kind(call, choices, ".".join(place), choices.kind(place))
    return None


def _of_class(call: str, choices: Choices, flag: str, name: str, kind: Any) -> str:
    path = choices.known.path(name, kind)
    made = choices.known.held(name) or found_at(path)
    if made is None:
        raise usage(no_class(choices, f"--{flag}", name, kind))
    if fault := unfit_class(f"--{flag}", path, made, kind):
        raise usage(fault)
    return parsers.of_class(f"{call} --{flag} {name}", flag, made, taken_by(kind)).format_help()


def _of_kind(call: str, choices: Choices, flag: str, kind: Any) -> str:
    if (record := record_of(kind)) is not None:
        return parsers.of_class(call, flag, record, 0).format_help()
    groups = {shown(choices.known.file): choices.known.own(kind), **_imported(kind)}
    lines = [line for group, names in groups.items() if names for line in _listed(group, names)]
    head = f"--{flag} takes {kind_text(kind)}"
    if not lines:
        return f"{head}: a class or function by its dotted path, such as torch.nn.functional.relu\n"
    example = next(name for names in groups.values() for name in names)
    end = f"For the arguments of one: {call} --{flag}.help {example}"
    return "\n".join([f"{head}. By name, beside others by dotted path:", *lines, "", end, ""])


def _imported(kind: Any) -> dict[str, list[str]]:
    """The names of classes by the module that they are in, the most of them first."""
    groups: dict[str, list[str]] = {}
    if "torch.Tensor" in map(path_of, bases_of(kind)):  # functions give these, of any kind
        return groups
    for name, paths in sorted(known_classes(kind).items(), key=lambda item: item[0].lower()):
        for path in paths:
            module = path.rpartition(".")[0]
            if "._" not in module and pkgutil.resolve_name(path) not in bases_of(kind):
                groups.setdefault(module, []).append(name)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def _listed(group: str, names: Sequence[str]) -> list[str]:
    columns = shutil.get_terminal_size().columns - 2
    text = ", ".join(names)
    return ["", group, *textwrap.wrap(text, columns, initial_indent="  ", subsequent_indent="  ")]
