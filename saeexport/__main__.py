"""`python -m saeexport`: the same as the command `saeexport`."""

import sys

from .cli import main

sys.exit(main())
