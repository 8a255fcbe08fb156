"""``python -m fnloop``: the command line."""

import sys

from fnloop.cli import main

sys.exit(main())
