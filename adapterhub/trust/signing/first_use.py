"""Trust on first use: the signer of each signed adapter, and its newest version for each base and rank.

The records are in `seen_signatures.json`, which is replaced whole under a lock, so that neither a crash nor a second
process loses a record. They expose a mirror that offers an old version as the newest, and a new owner of a known name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapterhub.core.digests import Digest, canonical_json, parse_digest, strict_json
from adapterhub.core.disk.files import write_durably
from adapterhub.core.disk.owned_file import read_owned
from adapterhub.core.disk.root import Root
from adapterhub.core.errors import Malformed, NotAllowed, SpecError
from adapterhub.core.specs import parse_version

_LIMIT_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstUseBuild:
    """The newest signed version for one base (a digest, or "" where it is unknown) and one rank."""

    base: str
    rank: int | None
    version: str

    def to_json(self) -> dict[str, Any]:
        """The JSON value."""
        return {"base": self.base, "rank": self.rank, "version": self.version}


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstUse:
    """The record of one name. `signer` is the fingerprint of the key that signed the latest admitted build."""

    signer: Digest
    builds: tuple[FirstUseBuild, ...]


class FirstUseFile:
    """The records of the library under `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.path = root / "seen_signatures.json"

    def of(self, full_name: str) -> FirstUse | None:
        """The record of a full name; None if it was never admitted with a signature.

        Raises:
            Malformed: the file is damaged; no name may count as new then.
            NotAllowed: others own or can write the file or its folder.
        """
        return self._read().get(full_name)

    def remember(self, full_name: str, build: FirstUseBuild, signer: Digest) -> None:
        """Record a version that a trusted key signed; an older one changes only the signer."""
        with Root(self._root).lock("trust", exclusive=True):
            everything = self._read()
            known = everything.get(full_name)
            builds = {(b.base, b.rank): b for b in known.builds} if known else {}
            before = builds.get((build.base, build.rank))
            if before is None or is_older(before.version, build.version):
                builds[build.base, build.rank] = build
            found = FirstUse(signer=signer, builds=tuple(builds.values()))
            if found != known:
                self._write({**everything, full_name: found})

    def _read(self) -> dict[str, FirstUse]:
        try:
            raw = read_owned(self.path, "says which signed versions were seen", limit_bytes=_LIMIT_BYTES)
            value = strict_json(raw, limit_bytes=_LIMIT_BYTES)
            return {name: _seen(item) for name, item in value["adapters"].items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise NotAllowed(f"`{self.path}` cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, SpecError) as error:
            raise Malformed(
                f"`{self.path}`: {error}", hint="mend the file; deleting it forgets which signed versions were seen"
            ) from None

    def _write(self, everything: Mapping[str, FirstUse]) -> None:
        value = {
            name: {"signer": seen.signer, "builds": [b.to_json() for b in seen.builds]}
            for name, seen in everything.items()
        }
        try:
            write_durably(self.path, canonical_json({"adapters": value}) + b"\n", mode=0o600)
        except OSError as error:
            raise Root(self._root).explain(error) from error


def is_older(version: str, other: str) -> bool:
    """Whether `version` comes before `other` by PEP 440."""
    from packaging.version import Version

    return Version(version) < Version(other)


def _seen(item: Any) -> FirstUse:  # noqa: ANN401 - any JSON value
    builds = []
    for build in item["builds"]:
        rank = build["rank"]
        if not isinstance(build["base"], str) or not (rank is None or type(rank) is int):
            raise ValueError("builds: expected a text `base` and a number `rank`")
        builds.append(FirstUseBuild(base=build["base"], rank=rank, version=parse_version(build["version"])))
    return FirstUse(signer=parse_digest(item["signer"]), builds=tuple(builds))
