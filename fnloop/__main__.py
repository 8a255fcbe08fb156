"""``python -m fnloop``: the command line."""

import sys

from fnloop.cli.app import main

sys.exit(main())
