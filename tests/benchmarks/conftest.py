"""Files whose library is not installed are not looked at for examples."""

from __future__ import annotations

import importlib.util

_NEEDS = {
    "jax": ["population_jax.py", "problems_jax.py", "with_jax.py"],
    "pytorch_lightning": ["with_lightning.py"],
    "accelerate": ["with_accelerate.py"],
}

collect_ignore = [
    file
    for library, files in _NEEDS.items()
    if not importlib.util.find_spec(library)
    for file in files
]
