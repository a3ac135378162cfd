"""`python -m tests.engines` runs the tests with real engines, which lie in `tests/inference/engines`."""

from __future__ import annotations

import sys

from tests.inference.engines.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
