"""``python -m aiochatstream``."""

import sys

from aiochatstream.cli import main

sys.exit(main())
