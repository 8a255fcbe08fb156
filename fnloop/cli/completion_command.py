"""``fnloop completion``: what a shell offers while a command is typed."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Iterator, Sequence

from fnloop.cli import parsers
from fnloop.cli.commands import COMMANDS, WITH_RECIPES
from fnloop.cli.completed_flags import CompletedFlags
from fnloop.cli.messages import usage

_SHELLS = {
    "bash": """\
_fnloop() {
    local IFS=$'\\n' word=${COMP_WORDS[COMP_CWORD]} found
    found=$(fnloop completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null | cut -f1)
    [[ $word == = ]] && word=
    COMPREPLY=($(compgen -W "$found" -- "$word"))
}
complete -o bashdefault -o default -F _fnloop fnloop
""",
    "zsh": """\
#compdef fnloop
_fnloop() {
    local line
    local -a found
    for line in "${(@f)$(fnloop completion words "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
        [[ -n $line ]] && found+=("${${line/$'\\t'/:}%:}")
    done
    (( $#found )) && _describe fnloop found || _files
}
compdef _fnloop fnloop
""",
    "fish": """\
function _fnloop
    set -l word (commandline -ct)
    set -l found (fnloop completion words (commandline -opc)[2..] "$word" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path "$word"
    end
end
complete -c fnloop -f -a '(_fnloop)'
""",
}

_WHERE = {
    "bash": "echo 'eval \"$(fnloop completion bash)\"' >> ~/.bashrc",
    "zsh": "echo 'eval \"$(fnloop completion zsh)\"' >> ~/.zshrc   # after compinit",
    "fish": "fnloop completion fish > ~/.config/fish/completions/fnloop.fish",
}

_VALUES = {
    "--checkpoint": ("best", "latest"),
    "--dtype": ("fp32", "bf16", "fp16"),
    "--kind": ("grad", "step", "callback"),
    "--member": ("best",),
    "--params": ("ema",),
    "--search": ("power", "binary"),
}
_FIRST = {
    "completion": tuple(_SHELLS),
    "new": ("stage", "optimizer", "callback", "effect", "tracker"),
}


def run_completion(arguments: Sequence[str]) -> int:
    """``fnloop completion SHELL``: print what the shell is to read.

    With ``words`` in place of a shell, and the words typed so far, of which the last is unfinished:
    print what may stand for the last, one in a line, each with a tab and its help.

    Raises:
        Problem: The shell is unknown.
    """
    shell, *words = arguments or [""]
    if shell == "words":
        for word, help in candidates(words[:-1], words[-1] if words else ""):
            print(f"{word}\t{help}")
        return 0
    if shell not in _SHELLS or words:
        choices = "\n".join(f"  {name:<5} {line}" for name, line in _WHERE.items())
        raise usage(f"Which shell? fnloop completion bash|zsh|fish. To install it:\n{choices}")
    print(_SHELLS[shell], end="")
    return 0


def candidates(words: Sequence[str], last: str) -> Iterator[tuple[str, str]]:
    """What `last` may become, with its help; nothing where a file is meant.

    >>> list(candidates([], "di"))
    [('diff', 'Compare two checkpoints, leaf by leaf.')]
    >>> [word for word, _ in candidates(["test", "--checkpoint"], "")]
    ['best', 'latest']
    """
    if last == "=":  # bash takes it for a word of its own
        last = ""
    words = [word for word in words if word != "="]
    option, equals, value = last.partition("=")
    if option.startswith("--") and equals:
        for word, help in candidates([*words, option], value):
            yield f"{option}={word}", help
        return
    found = _commands() if not words else _arguments(words[0], words[1:], last)
    yield from [(word, help) for word, help in found if word.startswith(last)]


def _commands() -> Iterator[tuple[str, str]]:
    yield from COMMANDS.items()
    yield "--help", "show the help"
    yield "--version", "print the version"


def _arguments(command: str, words: Sequence[str], last: str) -> Iterator[tuple[str, str]]:
    if command not in COMMANDS:
        return
    if not words and not last.startswith("-"):
        yield from [(name, "") for name in _FIRST.get(command, ())]
    flags = CompletedFlags(words) if command in (*WITH_RECIPES, "resume") else None
    options = dict(_options(command))
    if words and words[-1] in _VALUES and words[-1] in options:
        yield from [(value, "") for value in _VALUES[words[-1]]]
    elif words and words[-1].startswith("--") and flags is not None and not last.startswith("-"):
        yield from flags.values(words[-1], last)
    elif last.startswith("-"):
        yield from options.items()
        if flags is not None:
            yield from flags.options(last)


def _options(command: str) -> Iterator[tuple[str, str]]:
    for action in parsers.of(command)._actions:
        for option in action.option_strings:
            if option.startswith("--") and action.help != SUPPRESS:
                yield option, " ".join(str(action.help).split())
