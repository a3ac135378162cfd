"""The public Python functions behind each command. The reference page of the commands shows them; a test proves them.

Each function is paired with what it and the command both call: a step, or a method that stands below both. A command
that calls one method has no row: `tests/measure_house.py` reads the method off its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_STEPS: Final = "adapterhub.api.steps"
FUNCTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "ui": {
        "Library.ui": "adapterhub.api.pages.serving:Ui",
        "Library.playground": "adapterhub.inference.playground:Playground",
    },
    "merge": {
        "Library.merge": "adapterhub.weights.catalogue:describe",
    },
    "run": {
        "Library.run": "adapterhub.inference.generation:write",
        "Library.draw": "adapterhub.inference.images:draw",
        "Library.attach": "adapterhub.inference.loader:attach",
        "Library.bank": "adapterhub.inference.bank:AdapterBank",
    },
}
"""By command, subcommands included: the public functions, each with what both call."""

WITHOUT: Final[Mapping[str, str]] = {
    "demo": "runs other commands and shows how they are typed",
    "serve": "starts another program and stays until it ends; a program starts vLLM with our plugin itself",
    "registry": "administers a server; its functions are those of the package `adapterhub_registry`",
}
"""Commands that are about the command line or another program, with the reason."""
