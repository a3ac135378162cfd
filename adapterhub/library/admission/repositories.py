"""Which repository each name comes from on a server that keeps no names itself, such as the Hugging Face Hub.

There any repository of a namespace may hold a manifest that claims any name. So the first one that a name is installed
from keeps it here, and the repository that is called by the name may always supply it. Another needs the user's
consent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.core.digests import Digest, canonical_json, strict_json
from adapterhub.core.disk.files import write_durably
from adapterhub.core.disk.owned_file import read_owned
from adapterhub.core.disk.root import Root
from adapterhub.core.errors import Malformed, NotAllowed, shown
from adapterhub.core.hub_ids import is_hub_id

if TYPE_CHECKING:
    from adapterhub.formats.release import Release
    from adapterhub.library.library import Library

_LIMIT_BYTES: Final = 16 << 20
_Places = Mapping[str, Mapping[str, list[str]]]


class Repositories:
    """The records of the library under `root`: by server and full name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.path = root / "repositories.json"

    def of(self, place: str, full_name: str) -> frozenset[str]:
        """The repositories that may supply a name on a server; none before its first use.

        Raises:
            Malformed: the file is damaged; no name may count as new then.
            NotAllowed: others own or can write the file or its folder.
        """
        return frozenset(self._read().get(place, {}).get(full_name, ()))

    def bind(self, place: str, full_name: str, repository: str) -> None:
        """Let a repository supply a name from now on."""
        if repository in self.of(place, full_name):
            return
        with Root(self._root).lock("trust", exclusive=True):
            everything = {key: dict(names) for key, names in self._read().items()}
            names = everything.setdefault(place, {})
            names[full_name] = sorted({*names.get(full_name, ()), repository})
            try:
                write_durably(self.path, canonical_json({"places": everything}) + b"\n", mode=0o600)
            except OSError as error:
                raise Root(self._root).explain(error) from error

    def _read(self) -> _Places:
        try:
            raw = read_owned(self.path, "says which repository each name comes from", limit_bytes=_LIMIT_BYTES)
            return _places(strict_json(raw, limit_bytes=_LIMIT_BYTES))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise NotAllowed(f"`{self.path}` cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Malformed(
                f"`{self.path}`: {error}", hint="mend the file; deleting it forgets which repositories names came from"
            ) from None


def _places(value: object) -> _Places:
    if not isinstance(value, dict) or not isinstance(value["places"], dict):
        raise TypeError("expected an object with `places`")
    for names in value["places"].values():
        for repositories in names.values():
            if not isinstance(repositories, list) or not all(isinstance(r, str) and is_hub_id(r) for r in repositories):
                raise ValueError("a name has a list of repositories")
    places: _Places = value["places"]
    return places


def strangers(library: Library, releases: Sequence[Release]) -> dict[tuple[Digest, str], str]:
    """The reason against each of `releases` from another repository than its name, by digest and repository."""
    offered = [release for release in releases if release.claimed_at]
    there = {release.repository for release in offered}
    known = Repositories(library.root)
    told = {}
    for release in releases:
        if release.lost_name and release.repository not in library.accepted:
            repository = shown(release.repository)
            told[release.digest, release.repository] = (
                f"from `{repository}`, which may not release `{shown(release.full_name)}` any more; "
                f"`adapt install {repository} --accept-repository {repository}` takes it from there"
            )
    for release in offered:
        name, repository = release.full_name, release.repository
        if repository == name or repository in library.accepted:
            continue
        bound = known.of(release.claimed_at, name)
        if repository in bound or (not bound and name not in there):
            continue
        if repository.lower() == f"{name}-{library.base_label(release.facts.base)}".lower():
            continue  # the repository for this base, by the alias that it has here
        owner = min(bound, default=name)
        told[release.digest, repository] = (
            f"from `{shown(repository)}`, while `{shown(name)}` comes from `{shown(owner)}`; "
            f"`adapt install {shown(name)} --accept-repository {shown(repository)}` takes it from there, too"
        )
    return told
