"""``python bench/load.py URL [options]``: what ``aiochatstream bench`` does."""

import sys

from aiochatstream.cli.main import main

sys.exit(main(["bench", *sys.argv[1:]]))
