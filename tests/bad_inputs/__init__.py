"""Malformed and hostile adapters, and good ones that a careless guard would refuse, by id: `CASES["S01"]`.

Each has the verdicts that are right for it. The letters: S the container, C the config, P pairs and shapes, N numbers,
K pickles and code, F files and links, G good ones.
"""

from tests.bad_inputs import configs, containers, files, updates  # noqa: F401 - each adds its cases
from tests.bad_inputs.cases import CASES, SECRET, write

__all__ = ["CASES", "SECRET", "write"]
