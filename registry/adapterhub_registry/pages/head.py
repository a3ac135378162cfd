"""What stands at the top of every page about one build: its name and version, the line to install it, and verdicts."""

from __future__ import annotations

import json
import shlex
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

from sqlalchemy import Row, select
from sqlalchemy.engine import Connection

from adapterhub.core.digests import hex_of
from adapterhub.core.errors import AdapterHubError
from adapterhub.formats.administration import NamespaceRule
from adapterhub.formats.contract.contract import Contract
from adapterhub.formats.contract.reader import parse_contract
from adapterhub.formats.derived.record import DerivedRecord
from adapterhub.formats.manifest import CONTRACT_FILE, SIGNATURE_FILE
from adapterhub.formats.signature import SIGNATURE_LIMIT_BYTES
from adapterhub.pages.figures import engines_verdict
from adapterhub.pages.values import Badge, Head, Link, Notice, Verdict, VersionLine
from adapterhub_registry.access.rights import is_seen
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.db import derived
from adapterhub_registry.database.trees import FileTree
from adapterhub_registry.pages.files import listed_versions, tabs_of, version_line
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos.adapters import versions_of
from adapterhub_registry.testing import COVERED, StoredResult, results_on, rule_of, signer_of

MAX_CONTRACT_BYTES: Final = 1 << 20
MENU: Final = 5


@dataclass(frozen=True, slots=True)
class Figures:
    """The derived record of a build with its state, and why it has none."""

    state: str
    reason: str = ""
    record: DerivedRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Top:
    """One build of a repository, with what its pages need; `facts` is its row, None if no adapter is indexed.

    `newest` is its newest version. `name` is the version or revision in the address, and `reads` whether the caller may
    read the files.
    """

    here: Visit
    connection: Connection
    repo: Row[Any]
    facts: Row[Any] | None
    newest: Row[Any] | None
    tree: FileTree
    reads: bool
    name: str
    below: str | None = None
    contract: Contract | None = field(init=False)
    figures: Figures = field(init=False)
    rule: NamespaceRule = field(init=False)
    versions: tuple[VersionLine, ...] = field(init=False)
    rest: str | None = field(init=False)

    def __post_init__(self) -> None:
        """Read the contract, the figures and the newest versions once."""
        repo, facts = self.repo, self.facts
        found = {
            "contract": contract_of(self.here.registry, self.tree) if self.reads else None,
            "rule": rule_of(self.connection, repo.namespace),
            "figures": figures_of(self.connection, facts) if facts is not None and self.reads else Figures("none"),
        }
        lines = listed_versions(
            self.connection, repo.id, lambda one: f"/{repo.full_name}/{one.released_as}", below=self.below
        )
        for name, value in (found | {"versions": lines[0], "rest": lines[1]}).items():
            object.__setattr__(self, name, value)

    @property
    def version(self) -> str | None:
        """The released version; None for a commit without one."""
        return getattr(self.facts, "released_as", None)

    def head(self, tab: str) -> Head:
        """Return the top of the page `tab`."""
        full, version, facts = self.repo.full_name, self.version, self.facts
        newest = self.newest
        where = f"{full}=={version}" if version else full
        is_asked = tab == "weights" or getattr(facts, "yanked_at", None) is None  # an exact pin of a yanked one works
        return Head(
            repo=full,
            version=version or self.name,
            is_release=version is not None,
            description=(facts.description if facts is not None else "") or "",
            install=f"adapt install {shlex.quote(where)} --remote {self.here.address}"
            if facts is not None and is_asked
            else "",
            at=facts.released_at if facts is not None and version else self.repo.modified_at,
            badges=tuple(self._badges()),
            versions=self._menu(),
            versions_url=f"/{full}?tab=versions",
            newest=newest.released_as if newest is not None and newest.yanked_at is None else None,
            notices=tuple(self._notices(newest)),
            verdicts=tuple(self._verdicts()) if facts is not None else (),
            tabs=tabs_of(
                self.here,
                full,
                tab,
                build=None if facts is None else version or self.name,
                revision=facts.tag if facts is not None and version else self.name,
                versions=len(self.versions) if self.rest is None and self.below is None else None,
                files=self.tree.totals().files,
            ),
        )

    def _menu(self) -> tuple[VersionLine, ...]:
        """Return the newest versions, also on a page of older ones."""
        if self.below is None:
            return self.versions[:MENU]
        full = self.repo.full_name
        newest = versions_of(self.connection, self.repo.id, limit=MENU)
        return tuple(version_line(one, f"/{full}/{one.released_as}") for one in newest)

    def _badges(self) -> Iterator[Badge]:
        facts, repo = self.facts, self.repo
        if facts is None:
            yield Badge(text="No adapter at main")
        elif getattr(facts, "yanked_at", None) is not None:
            yield Badge(text="Yanked", tone="bad")
        if repo.private:
            yield Badge(text="Private")
        if repo.gated:
            yield Badge(text="Gated")

    def _notices(self, newest: Row[Any] | None) -> Iterator[Notice]:
        facts, full = self.facts, self.repo.full_name
        if facts is None or not self.version or newest is None:
            return
        is_usable = newest.yanked_at is None
        link = Link(text=newest.released_as, url=f"/{full}/{newest.released_as}")
        if facts.yanked_at is not None:
            rest = "Nothing new installs it unless you pin it; lock files that name it go on."
            text = f"Yanked: {facts.yanked_reason}"
            if not is_usable and newest.released_as == self.version:
                text = f"Every version is yanked; the newest, {self.version}: {facts.yanked_reason}"
            yield Notice(tone="bad", text=text, rest=rest, link=link if is_usable else None)
        elif is_usable and newest.released_as != self.version:
            compared = urlencode({"a": f"{full}=={newest.released_as}", "b": f"{full}=={self.version}"})
            yield Notice(
                tone="warn",
                text="This is not the latest version.",
                link=link,
                other=Link(text="Compare the two", url=f"/compare?{compared}"),
            )

    def _verdicts(self) -> Iterator[Verdict]:
        facts, full = self.facts, self.repo.full_name
        assert facts is not None
        base = facts.base_model or ""
        if facts.base_sha256:
            url = f"/base/{facts.base_sha256}"
            yield Verdict(name="Base", text="Recognised", tone="good", detail=base or facts.base_sha256[:12], url=url)
        elif base:
            url = f"/?{urlencode({'base': base})}"
            yield Verdict(name="Base", text="Known by name only", tone="warn", detail=base, url=url)
        else:
            yield Verdict(name="Base", text="Not stated")
        yield self._signature()
        yield self._tested()
        page = f"/{full}/{self.version or self.name}"
        record = self.figures.record
        yield engines_verdict(record.engines if record else None, f"{page}#engines", self.figures.state)

    def _signature(self) -> Verdict:
        entry = self.tree.find(SIGNATURE_FILE)
        if entry is None:
            return Verdict(name="Signature", text="None")
        rule, signer = self.rule, None
        if self.reads and rule.keys and entry.size <= SIGNATURE_LIMIT_BYTES:
            found = {path: found.sha256 for path in COVERED if (found := self.tree.find(path)) is not None}
            signer = signer_of(b"".join(self.here.registry.blobs.open(entry.sha256)), found, rule)
        keys = f"/{self.repo.namespace}?tab=keys"
        if signer:
            return Verdict(name="Signature", text="Valid", tone="good", detail=f"by {signer}", url=keys)
        return Verdict(name="Signature", text="Attached, key unknown", detail="Keys that are known here", url=keys)

    def _tested(self) -> Verdict:
        asked, recorded = "", self.tree.find(CONTRACT_FILE) is not None
        if self.contract is not None:
            asked = f"{len(self.contract.goldens)} {self.contract.noun}"
        assert self.facts is not None
        tested = results_on(self.connection, self.repo, self.facts.digest, self.rule) if self.reads else []
        known = next((one for one in tested if one.signer is not None), None)
        if known is not None:
            return Verdict(name="Contract", **_outcome(known, asked))
        return Verdict(name="Contract", text="Recorded, not run" if recorded else "None", detail=asked)


def _outcome(known: StoredResult, asked: str) -> dict[str, Any]:
    said = known.said
    drift = "" if said.drift is None else f", drift {said.drift:.3f}"
    detail = f"{asked + ', ' if asked else ''}run by {known.signer} on base {hex_of(said.base)[:12]}{drift}"
    if said.verdict == "PASS":
        return {"text": "PASS", "tone": "good", "detail": detail}
    return {"text": "CHANGED", "tone": "bad", "detail": detail}


def figures_of(connection: Connection, build: Row[Any]) -> Figures:
    """Return the record of a build, a row of `adapters`."""
    if not is_seen(connection, build.created_at):
        return Figures("waiting")
    row = connection.execute(select(derived).where(derived.c.digest == build.digest)).one_or_none()
    if row is None or row.record is None:
        return Figures("waiting" if row is None else row.state, "" if row is None else row.reason or "")
    try:
        return Figures(row.state, row.reason or "", DerivedRecord.from_json(json.loads(zlib.decompress(row.record))))
    except ValueError:  # of an older version of this program
        return Figures("waiting")


def contract_of(registry: Registry, tree: FileTree) -> Contract | None:
    """Return the contract of a build, if it is readable."""
    entry = tree.find(CONTRACT_FILE)
    if entry is None or entry.size > MAX_CONTRACT_BYTES:
        return None
    try:
        return parse_contract(b"".join(registry.blobs.open(entry.sha256)))
    except (AdapterHubError, ValueError):
        return None
