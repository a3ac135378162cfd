"""The adapters that a running server must not serve any more, with the reason of each.

Three lists count: `--deny`, the file of `--deny-file`, and `deny`, which a yank calls. A line of the file, and the text
of `--deny`, is a spec or a digest, then the reason:

    acme/legal-qa<1.3            leaks names of customers
    sha256:9f86d081              trained on the wrong data
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterDenied, Malformed, SpecError, UsageProblem, problem_list, shown
from adapterhub.core.specs import AdapterSpec
from adapterhub.inference.serving.access.watched import WatchedFile

REASON_CHARACTERS: Final = 500
"""Of a reason in an answer; the rest is cut."""

NO_REASON: Final = "no reason given"


@dataclass(frozen=True, slots=True)
class DenyRule:
    """The builds that one line names: a digest, or a name with versions. A bare name counts in every namespace."""

    spec: AdapterSpec | None
    digest_prefix: str
    reason: str

    @classmethod
    def parse(cls, text: str) -> DenyRule:
        """Return the rule that `SPEC REASON…` or `sha256:… REASON…` spells.

        Raises:
            SpecError: the first word is neither, or there are several lines.
        """
        if len(text.splitlines()) > 1:
            raise SpecError(text, "expected one line")
        what, _, reason = text.strip().partition(" ")
        reason = shown(reason.strip(), REASON_CHARACTERS)
        if what.startswith("sha256:"):
            parsed = AdapterSpec.parse(f"any#{what}")
            return cls(None, parsed.digest_prefix or "", reason)
        spec = AdapterSpec.parse(what)
        if spec.base is not None:
            raise SpecError(what, "a server has one base; name the adapter without `@`")
        return cls(spec, spec.digest_prefix or "", reason)

    def covers(self, namespace: str, name: str, version: str, digest: Digest) -> bool:
        """Return whether the rule means that build; `namespace` is "" for a build without one."""
        if not digest.startswith(self.digest_prefix):
            return False
        spec = self.spec
        if spec is None:
            return True
        return name == spec.name and spec.namespace in {None, namespace} and spec.matches(version)


class Denied:
    """What must not be served. Thread-safe.

    `given` are the texts of `--deny`; `file` is read again by `refresh`.

    Raises:
        UsageProblem, Malformed, NotFound: a text or a line is not a rule, or the file cannot be read.
    """

    def __init__(self, given: Sequence[str] = (), file: Path | None = None) -> None:
        self._given = tuple(_rule_given(text) for text in given)
        self._file = None if file is None else WatchedFile(file, _rules_of)
        self._withdrawn: dict[Digest, str] = {}
        self._told: dict[tuple[str, Digest], str | None] = {}
        """The answers of `reason` since the lists changed."""
        self._callbacks: list[Callable[[], None]] = []
        self._lock = Lock()
        self.edition = 0
        """Grows with every change."""

    # ------------------------------------------------------------ change
    def deny(self, digest: Digest, reason: str = "") -> None:
        """Serve this build no more, from the next request on; requests that run end normally."""
        reason = shown(reason or NO_REASON, REASON_CHARACTERS)
        if self._withdrawn.get(digest) != reason:
            self._withdrawn[digest] = reason
            self._changed()

    def allow(self, digest: Digest) -> None:
        """Take `deny` back; `--deny` and the file still count."""
        if self._withdrawn.pop(digest, None) is not None:
            self._changed()

    def withdrawn(self) -> Collection[Digest]:
        """Return the entries that `deny` has denied."""
        return self._withdrawn.keys()

    def refresh(self) -> None:
        """Read the file again if it changed. A bad file is logged, and the last good one still counts."""
        if self._file is not None and self._file.refresh():
            self._changed()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back after every change, in the thread that made it."""
        self._callbacks.append(callback)

    # ------------------------------------------------------------ look up
    def reason(self, label: str, digest: Digest) -> str | None:
        """Return why the build `label`, such as `acme/legal-qa==1.2.0`, must not be served; None if it may be."""
        told = self._told
        try:
            return told[label, digest]
        except KeyError:
            told[label, digest] = found = self._find(label, digest)
            return found

    def ensure_allowed(self, label: str, digest: Digest) -> None:
        """Pass, or refuse.

        Raises:
            AdapterDenied: with the reason.
        """
        ensure_none(label, self.reason(label, digest))

    def _find(self, label: str, digest: Digest) -> str | None:
        withdrawn = self._withdrawn.get(digest)
        if withdrawn is not None:
            return withdrawn
        full_name, _, version = label.partition("==")
        namespace, _, name = full_name.rpartition("/")
        for rule in (*self._given, *(self._file.value if self._file else ())):
            if rule.covers(namespace, name, version, digest):
                return rule.reason or NO_REASON
        return None

    def _changed(self) -> None:
        with self._lock:
            self._told = {}
            self.edition += 1
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()


def ensure_none(label: str, reason: str | None) -> None:
    """Refuse the build `label` if there is a reason against it.

    Raises:
        AdapterDenied: with the reason.
    """
    if reason is not None:
        raise AdapterDenied(f"`{shown(label, 200)}` is not served any more: {shown(reason, REASON_CHARACTERS)}")


def _rule_given(text: str) -> DenyRule:
    try:
        return DenyRule.parse(text)
    except SpecError as error:
        raise UsageProblem(
            f"--deny: `{shown(error.text)}`: {error.reason}", hint="write a spec or a digest, then the reason"
        ) from None


def _rules_of(data: bytes, path: Path) -> tuple[DenyRule, ...]:
    rules, problems = list[DenyRule](), list[str]()
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            rules.append(DenyRule.parse(line))
        except SpecError as error:
            problems.append(f"line {number}: `{shown(error.text)}`: {error.reason}")
    if problems:
        raise Malformed(
            problem_list(f"`{shown(str(path), 200)}` is not a list of adapters to deny", problems),
            hint="write one rule a line: a spec or digest, then the reason",
        )
    return tuple(rules)
