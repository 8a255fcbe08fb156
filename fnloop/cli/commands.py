"""The commands: what they do, and how they are called."""

from __future__ import annotations

COMMANDS = {
    "fit": "Train what a recipe describes.",
    "resume": "Go on with a run.",
    "validate": "Evaluate a run on its validation data.",
    "test": "Evaluate a run on its test data.",
    "predict": "Write a run's predictions.",
    "runs": "List runs, and in what they differ.",
    "show": "Show a checkpoint, or the checkpoints of a run.",
    "diff": "Compare two checkpoints, leaf by leaf.",
    "replay": "Run one step of a run again, and see what happens in it.",
    "export": "Write a run's weights as a file for other tools.",
    "summary": "Show the stages and the modules of a recipe, and what a step takes.",
    "sweep": "Train a recipe for several values of its flags, all at once.",
    "profile": "Say where the time and the memory of a recipe's step go.",
    "find-lr": "Try learning rates of a recipe, and suggest one.",
    "find-batch-size": "Find the largest batch that fits into memory.",
    "completion": "Complete commands and flags in bash, zsh or fish.",
    "new": "Write a stage, optimizer, callback, effect or tracker to begin with, and its test.",
}

WITH_RECIPES = ("fit", "summary", "sweep", "profile", "find-lr", "find-batch-size")
"""Commands that take a recipe and its flags."""

USAGE = {
    "fit": (
        "RECIPE.py [--config FILE.yaml] [--resume | --overwrite | --smoke] [--deterministic] "
        "[--nproc N] [--print-config] [--FLAG VALUE ...]"
    ),
    "resume": "RUN [--recipe RECIPE.py] [--deterministic] [--nproc N] [--FLAG VALUE ...]",
    "validate": "RUN [--member I|best] [--checkpoint best|latest|PATH] [--recipe RECIPE.py]",
    "test": "RUN [--member I|best] [--checkpoint best|latest|PATH] [--recipe RECIPE.py]",
    "predict": (
        "RUN [--member I|best] [--output PLACE] [--checkpoint best|latest|PATH] "
        "[--recipe RECIPE.py]"
    ),
    "completion": "bash|zsh|fish",
    "runs": "[FOLDER ...] [--metric NAME[,NAME]] [--sort COLUMN] [--plot FILE]",
    "show": "CHECKPOINT_OR_RUN [--member I|best]",
    "diff": "A B [--member I|best[,I|best]]",
    "replay": (
        "RUN [--step N] [--member I|best] [--checkpoint PATH] [--recipe RECIPE.py] "
        "[--save FILE.safetensors]"
    ),
    "export": (
        "CHECKPOINT_OR_RUN --output FILE [--member I|best] [--params SLOT] "
        "[--dtype fp32|bf16|fp16] [--force] [--checkpoint best|latest|PATH] [--recipe RECIPE.py]"
    ),
    "summary": "RECIPE.py [--levels N] [--ranks N] [--config FILE.yaml] [--FLAG VALUE ...]",
    "sweep": (
        "RECIPE.py --FLAG A,B,C [--FLAG VALUE ...] [--seeds N] [--loop | --chunk K] [--plot FILE] "
        "[--resume | --overwrite] [--config FILE.yaml]"
    ),
    "profile": (
        "RECIPE.py [--steps N] [--trace FILE.json] [--plot FILE] [--config FILE.yaml] "
        "[--FLAG VALUE ...]"
    ),
    "find-lr": (
        "RECIPE.py [--of NAME] [--from LR] [--to LR] [--candidates N] [--plot FILE] "
        "[--config FILE.yaml] [--FLAG VALUE ...]"
    ),
    "find-batch-size": (
        "RECIPE.py [--of FLAG] [--from N] [--to N] [--search power|binary] [--config FILE.yaml] "
        "[--FLAG VALUE ...]"
    ),
    "new": "stage|optimizer|callback|effect|tracker NAME [--kind grad|step|callback]",
}

YIELDING = {"profile": {"steps": "how many steps to measure; default 10"}}
"""Options that are the recipe's own flags where it has some of the name; whole numbers."""
