"""``python -m aiochatstream``."""

import sys

from aiochatstream.cli.main import main

sys.exit(main())
