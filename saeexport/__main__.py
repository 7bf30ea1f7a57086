"""Runs the command line: `python -m saeexport` is the same as `saeexport`."""

import sys

from .cli import main

sys.exit(main())
