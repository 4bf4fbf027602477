"""`python -m smalle` is the command `smalle`."""

import sys

from .cli.main import main

sys.exit(main())
