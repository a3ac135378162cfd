"""The packages of each extra, and the refusal for an extra that is needed but not installed.

`pip install adapterhub` brings the core. An extra (`pip install 'adapterhub[weights]'`) adds the packages that some
commands and functions need; they import these where they use them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from types import MappingProxyType
from typing import Final

from adapterhub.core.errors import MissingExtra

_WEIGHTS: Final = ("torch", "transformers", "peft", "numpy", "jinja2")

_UI: Final = ("starlette", "uvicorn", "markdown_it", "nh3", "python_multipart", "jinja2", "threadpoolctl")

EXTRAS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "weights": _WEIGHTS,
        "export": (*_WEIGHTS, "gguf", "h11", "httpx", "pydantic", "uvicorn"),
        "plot": (*_WEIGHTS, "matplotlib"),
        "quantized": (*_WEIGHTS, "bitsandbytes"),
        "tune": (*_WEIGHTS, "cma"),
        "diffusion": (*_WEIGHTS, "diffusers"),
        "find": ("numpy", "tokenizers"),
        "demo": (*_WEIGHTS, "gguf", "sentencepiece"),
        "ui": _UI,
        "registry": (
            "alembic", "blake3", "dulwich", "fastapi", "h11", "httpx", "joserfc", "lz4", "prometheus_client",
            "pydantic", "sqlalchemy", *_UI,
        ),
        "mcp": ("mcp",),
        "scale": ("obstore", "psycopg"),
    }
)  # fmt: skip
"""The modules of each extra for users. A module of several belongs to the first."""


def missing(extra: str) -> tuple[str, ...]:
    """Return the modules of `extra` that are not installed."""
    return tuple(name for name in EXTRAS[extra] if find_spec(name) is None)


def require(extra: str, what: str) -> None:
    """Raise unless `extra` is installed; `what` is the subject of the message, as in "a picture".

    Raises:
        MissingExtra: naming the modules that are missing.
    """
    if names := missing(extra):
        raise MissingExtra(what, names, extra)


@contextmanager
def extra_named(what: str, first: str = "") -> Iterator[None]:
    """Name the missing extra if an import in the block fails; `what` is the subject of the message.

    `first` is the extra to name where several bring the package.

    Raises:
        MissingExtra: a module of an extra was not found.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        for extra in (*filter(None, [first]), *EXTRAS):
            if package in EXTRAS[extra]:
                raise MissingExtra(what, (package,), extra) from None
        raise
