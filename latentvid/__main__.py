"""`python -m latentvid` is `latentvid`."""

from __future__ import annotations

import sys

from latentvid.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
