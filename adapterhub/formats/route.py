"""The routing file: the adapters among which `auto` chooses, with the vectors of their example prompts.

It holds no text. `docs/how-to/serve.md` shows its use.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapterhub.core.digests import Digest, Json, parse_digest, strict_json
from adapterhub.core.disk.files import read_typed
from adapterhub.core.errors import Malformed, SpecError, problem_list, shown
from adapterhub.core.specs import AdapterSpec, parse_version
from adapterhub.formats.meaning.model import MODEL, SIZE

SCHEMA: Final = "adapterhub/route/1"
AUTO: Final = "auto"
"""The model name that a server with a routing file answers."""

BASE: Final = "base"
"""What a text is for that is for none of the adapters."""

FEWEST_PROMPTS: Final = 8
MOST_PROMPTS: Final = 64
FEWEST_ADAPTERS: Final = 2
MOST_ADAPTERS: Final = 256
LEAST_ACCURACY: Final = 0.9
MAX_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedAdapter:
    """One adapter of a routing file; `vectors` are those of its prompts, 384 signed bytes each."""

    name: str
    version: str
    digest: Digest
    vectors: bytes

    @property
    def label(self) -> str:
        """Name and version, such as `acme/legal-qa==1.2.0`."""
        return f"{self.name}=={self.version}"

    @property
    def model(self) -> str:
        """The spec of exactly this build, a model name for a server."""
        return f"{self.label}#{self.digest[:19]}"

    @property
    def prompts(self) -> int:
        """The number of its prompts."""
        return len(self.vectors) // SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A routing file. `threshold` is the least cosine with the mean of an adapter's prompts.

    `base` is the digest of the base's weights. `accepted` says that the operator accepts an accuracy below 0.9.
    """

    base: Digest
    base_name: str
    threshold: float
    adapters: tuple[RoutedAdapter, ...]
    accepted: bool = False

    def to_bytes(self) -> bytes:
        """Return the file."""
        value = {
            "schema": SCHEMA,
            "model": MODEL,
            "base": {"name": self.base_name, "weights": self.base},
            "threshold": self.threshold,
            "accepted": self.accepted,
            "adapters": [
                {
                    "name": one.name,
                    "version": one.version,
                    "digest": one.digest,
                    "vectors": base64.b64encode(one.vectors).decode(),
                }
                for one in self.adapters
            ],
        }
        return json.dumps(value, indent=1).encode() + b"\n"


def read_route(path: Path) -> Route:
    """Return the routing file at `path`.

    Raises:
        NotFound: there is no such file.
        Malformed: with every problem.
    """
    where = shown(str(path), 200)
    hint = "`adapt route --base BASE --over NAME … -o FILE` makes one"
    raw = read_typed(path, MAX_BYTES, hint=hint)
    try:
        value = strict_json(raw, limit_bytes=MAX_BYTES)
    except ValueError as error:
        raise Malformed(f"`{where}` is not a routing file: {error}", hint=hint) from None
    problems: list[str] = []
    route = _read(value, problems)
    if problems or route is None:
        raise Malformed(problem_list(f"`{where}` is not a routing file", problems), hint=hint)
    return route


def _read(value: Json, problems: list[str]) -> Route | None:
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        problems.append(f"schema: expected `{SCHEMA}`")
        return None
    if value.get("model") != MODEL:
        problems.append(f"model: made with {shown(value.get('model'), 40)}, and this version compares with `{MODEL}`")
    base = value["base"] if isinstance(value.get("base"), dict) else {}
    threshold = value.get("threshold")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        problems.append(f"threshold: expected a number from 0 to 1, got {shown(threshold, 40)}")
        threshold = math.inf
    listed = value.get("adapters")
    if not isinstance(listed, list) or not FEWEST_ADAPTERS <= len(listed) <= MOST_ADAPTERS:
        problems.append(f"adapters: expected a list of {FEWEST_ADAPTERS} to {MOST_ADAPTERS}")
        listed = []
    adapters = [_adapter(one, f"adapters[{at}]", problems) for at, one in enumerate(listed)]
    found = tuple(one for one in adapters if one is not None)
    if len({one.name for one in found}) < len(found):
        problems.append("adapters: one name is there twice")
    weights = _digest(base.get("weights"), "base.weights", problems)
    if weights is None:
        return None
    return Route(
        base=weights,
        base_name=str(base.get("name", ""))[:200],
        threshold=float(threshold),
        adapters=found,
        accepted=value.get("accepted") is True,
    )


def _adapter(value: Json, where: str, problems: list[str]) -> RoutedAdapter | None:
    held: Mapping[str, Any] = value if isinstance(value, dict) else {}
    digest = _digest(held.get("digest"), f"{where}.digest", problems)
    try:
        name = AdapterSpec.parse(str(held.get("name"))).full_name
        version = parse_version(str(held.get("version")))
    except SpecError as error:
        problems.append(f"{where}: `{shown(error.text, 60)}`: {error.reason}")
        return None
    try:
        vectors = base64.b64decode(str(held.get("vectors")), validate=True)
    except (binascii.Error, ValueError):
        vectors = b""
    count, rest = divmod(len(vectors), SIZE)
    if rest or not FEWEST_PROMPTS <= count <= MOST_PROMPTS:
        problems.append(f"{where}.vectors: expected {FEWEST_PROMPTS} to {MOST_PROMPTS} times {SIZE} bytes in base64")
    elif not all(any(vectors[at : at + SIZE]) for at in range(0, len(vectors), SIZE)):
        problems.append(f"{where}.vectors: one is zero")
    return None if digest is None else RoutedAdapter(name=name, version=version, digest=digest, vectors=vectors)


def _digest(value: Json, where: str, problems: list[str]) -> Digest | None:
    try:
        return parse_digest(str(value))
    except ValueError:
        problems.append(f"{where}: expected a digest, got {shown(value, 40)}")
        return None
