"""Nothing here is collected unless an interpreter with vLLM is named."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("ADAPTERHUB_VLLM_PYTHON") else ["test_*.py"]
