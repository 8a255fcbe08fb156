"""Which files hold no tests where an optional library is absent."""

from __future__ import annotations

import importlib.util

collect_ignore = [] if importlib.util.find_spec("ray") else ["under_ray.py"]
