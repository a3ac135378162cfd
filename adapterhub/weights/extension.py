"""PEFT's extension for BOFT, which it compiles for CUDA as it builds the first layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def extension_where_possible() -> Iterator[None]:
    """Let PEFT build BOFT without its CUDA extension where there is no GPU, or where its tools cannot be imported.

    PEFT does without where compiling fails, but it imports the tools even for a CPU. That raises a bare AssertionError
    in a process that imported pip: after that, `setuptools` finds the `distutils` of Python in place of its own.
    """
    from peft.tuners.boft import layer

    module: Any = layer
    looked_up = module.get_fbd_cuda

    def found() -> Any:
        if not torch.cuda.is_available():
            return None
        try:
            return looked_up()
        except (AssertionError, ImportError):
            return None

    module.get_fbd_cuda = found
    try:
        yield
    finally:
        module.get_fbd_cuda = looked_up
