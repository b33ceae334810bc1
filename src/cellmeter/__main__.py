"""``python -m cellmeter`` is the command ``cellmeter``."""

import sys

from cellmeter.cli import main

sys.exit(main())
