"""``python bench/load.py URL [options]``: run ``aiochatstream bench``."""

import sys

from aiochatstream.cli.main import main

sys.exit(main(["bench", *sys.argv[1:]]))
