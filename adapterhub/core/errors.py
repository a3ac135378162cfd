"""The error tree: every refusal of this project, its exit code, and what to do next.

AdapterHubError                  exit code
├── UsageProblem                  2   the request itself cannot be read
│   ├── SpecError                     an adapter spec or base name that does not parse
│   └── AmbiguousSpec                 one spec, several answers
├── NotFound                     10   nothing by that name
│   ├── AdapterNotFound
│   ├── BaseNotFound
│   └── BlobNotFound
├── Incompatible                 11   found, but nothing that fits
│   ├── NoCompatibleRelease           one reason per release
│   ├── BaseMismatch                  made for another base
│   ├── UnsupportedAdapter            a kind of adapter that cannot be attached here
│   ├── MergeRefused                  adapters that cannot be added up
│   └── ProjectConflict               what a project asks for cannot be had together
├── DigestMismatch               12   bytes are not what their digest says
├── RemoteUnreachable            13   network, server or offline mode
├── NotAllowed                   14   no right, or a policy forbids it
│   ├── DiskFull                      no room
│   └── SignatureRefused              a signature is missing, broken, forged, or not for this
├── Conflict                     15   exists with other content, or locked
│   ├── ReleaseExists
│   ├── StoreLocked
│   └── StaleLock                     a lock file that does not answer its project
├── Malformed                    16   input that breaks its own format
│   ├── MalformedTensorFile
│   ├── MalformedConfig
│   ├── MalformedManifest
│   └── RefusedAdapter                the findings of `verify` say why
├── CouldNotTell                 17   a check could not be carried out
└── EngineFailed                 18   an inference engine did not start, or ended by itself

Exit codes 0 (done), 1 (our bug), 3 (finished, some items failed) and 130 (interrupted) belong to no class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130

SHOWN_CHARACTERS = 80
PROBLEMS_SHOWN = 50


def shown(value: object, limit: int = SHOWN_CHARACTERS) -> str:
    """`value` fit for one line of a terminal: control characters escaped, cut at `limit` characters.

    Text from a file or a server never reaches the terminal in any other way (escape sequences, bidi marks).
    """
    text = (value if isinstance(value, str) else repr(value))[: limit + 1]  # escapes only make it longer
    if len(text) <= limit and text.isprintable():
        return text
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def first_lines(lines: Sequence[str], most: int = PROBLEMS_SHOWN) -> list[str]:
    """The first `most` of the lines, and a line that counts the rest."""
    rest = len(lines) - most
    return [*lines[:most], *([f"and {rest:,} more"] if rest > 0 else [])]


def problem_list(title: str, problems: Sequence[str], most: int = PROBLEMS_SHOWN) -> str:
    """A title and one indented line for each problem; beyond `most` only their number."""
    return "\n".join([title, *(f"  {line}" for line in first_lines(problems, most))])


class AdapterHubError(Exception):
    """A refusal in plain words. `hint` is a command or step that would help; it may be empty."""

    exit_code: ClassVar[int] = EXIT_BUG

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageProblem(AdapterHubError):
    """The request cannot be read as typed."""

    exit_code = 2


class SpecError(UsageProblem):
    """An adapter spec, name or base that does not parse; `text` is what was typed."""

    def __init__(self, text: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"`{shown(text)}`: {reason}", hint=hint)
        self.text = text
        self.reason = reason


class AmbiguousSpec(UsageProblem):
    """One spec, several answers; `choices` holds one `(spec to type, what it is)` each."""

    def __init__(self, message: str, choices: Sequence[tuple[str, str]], *, hint: str = "") -> None:
        super().__init__("\n".join([message, *(f"  {spec}  {what}" for spec, what in choices)]), hint=hint)
        self.summary = message
        self.choices = tuple(choices)


class NotFound(AdapterHubError):
    """Nothing by that name."""

    exit_code = 10


class AdapterNotFound(NotFound):
    """No release of that name in any place that was asked."""


class BaseNotFound(NotFound):
    """No registered base, folder or hub repository by that name."""


class BlobNotFound(NotFound):
    """The store holds no object with that digest."""


class Incompatible(AdapterHubError):
    """Found, but nothing that fits."""

    exit_code = 11


class NoCompatibleRelease(Incompatible):
    """Every release was refused; `refusals` holds one `(release, reason)` each."""

    def __init__(self, message: str, refusals: Sequence[tuple[str, str]], *, hint: str = "") -> None:
        lines = [f"  {release}  {reason}" for release, reason in refusals]
        super().__init__("\n".join([message, *lines]), hint=hint)
        self.summary = message
        self.refusals = tuple(refusals)


class BaseMismatch(Incompatible):
    """The adapter was made for another base than the one it is asked to run on."""


class UnsupportedAdapter(Incompatible):
    """An adapter that may be sound but cannot be attached here; `reasons` names each feature that stands in the way."""

    def __init__(self, message: str, reasons: Sequence[str] = (), *, hint: str = "") -> None:
        super().__init__("\n".join([message, *(f"  {r}" for r in reasons)]), hint=hint)
        self.reasons = tuple(reasons)


class MergeRefused(Incompatible):
    """The adapters cannot be added up; `reasons` names every offending module or feature."""

    def __init__(self, message: str, reasons: Sequence[str] = (), *, hint: str = "") -> None:
        super().__init__("\n".join([message, *(f"  {r}" for r in reasons)]), hint=hint)
        self.reasons = tuple(reasons)


class ProjectConflict(Incompatible):
    """What a project asks for cannot be had together; `reasons` holds `(place in the project, what is there)` each."""

    def __init__(self, message: str, reasons: Sequence[tuple[str, str]], *, hint: str = "") -> None:
        super().__init__("\n".join([message, *(f"  {place}  {what}" for place, what in reasons)]), hint=hint)
        self.summary = message
        self.reasons = tuple(reasons)


class DigestMismatch(AdapterHubError):
    """Bytes are not what their digest says."""

    exit_code = 12

    def __init__(self, where: str, *, expected: str, actual: str, hint: str = "") -> None:
        super().__init__(
            f"{shown(where, 200)}: content does not match its digest: expected {expected}, got {actual}", hint=hint
        )
        self.where = where
        self.expected = expected
        self.actual = actual


class RemoteUnreachable(AdapterHubError):
    """A server could not be reached, answered with an error, or `--offline` forbids asking it."""

    exit_code = 13


class NotAllowed(AdapterHubError):
    """No right to do this, or a policy forbids it."""

    exit_code = 14


class DiskFull(NotAllowed):
    """The disk, a quota or a file-size limit was reached; nothing half-made was kept."""


class SignatureRefused(NotAllowed):
    """A signature is missing, broken, forged, by a key that may not sign this, or for something else.

    `reason` is one word for programs, such as `forged` or `unsigned` (`adapterhub.trust.signing` lists them); `clause`
    says the same of `what` in words. `ending` says what the refusal left as it was.
    """

    def __init__(
        self, what: str, clause: str, *, reason: str, hint: str = "", ending: str = "Nothing was stored"
    ) -> None:
        super().__init__(f"refused {what}: {clause}. {ending}", hint=hint)
        self.what = what
        self.clause = clause
        self.reason = reason


class NamespaceBound(NotAllowed):
    """The user gave a namespace or a name to one remote, and something else would answer for it."""


class ProjectNotTrusted(NotAllowed):
    """A project names servers that the user has not agreed to."""


class Conflict(AdapterHubError):
    """It exists with other content, or somebody holds the lock."""

    exit_code = 15


class ReleaseExists(Conflict):
    """A release of that name and version exists with other bytes; releases never change."""


class StoreLocked(Conflict):
    """Another process holds the store."""


class StaleLock(Conflict):
    """A lock file that does not answer its project any more; `problems` says why, one sentence each."""

    def __init__(self, where: str, problems: Sequence[str], *, hint: str = "") -> None:
        summary = f"`{shown(where, 200)}` is not what the project asks for. Nothing was changed"
        super().__init__("\n".join([summary, *(f"  {p}" for p in problems)]), hint=hint)
        self.problems = tuple(problems)


class Malformed(AdapterHubError):
    """Input that breaks its own format."""

    exit_code = 16


class MalformedTensorFile(Malformed):
    """A safetensors file that is not one; `code` is E_CONTAINER, E_LIMIT or E_TENSOR_NAME."""

    def __init__(self, where: str, reason: str, *, code: str = "E_CONTAINER", hint: str = "") -> None:
        super().__init__(f"{shown(where, 200)}: {reason}", hint=hint)
        self.where = where
        self.reason = reason
        self.code = code


class MalformedConfig(Malformed):
    """An `adapter_config.json` that cannot be used; `code` is E_CONFIG, E_REGEX, E_CODE or E_UNSUPPORTED."""

    def __init__(self, where: str, reason: str, *, code: str = "E_CONFIG", hint: str = "") -> None:
        super().__init__(f"{shown(where, 200)}: {reason}", hint=hint)
        self.where = where
        self.reason = reason
        self.code = code


class MalformedManifest(Malformed):
    """An `adapterhub.json` that breaks its schema; every problem is listed with its path."""

    def __init__(self, where: str, problems: Sequence[str], *, hint: str = "") -> None:
        super().__init__(
            "\n".join([f"{shown(where, 200)}: not a usable manifest", *(f"  {p}" for p in problems)]), hint=hint
        )
        self.where = where
        self.problems = tuple(problems)


class RefusedAdapter(Malformed):
    """An adapter that must not be stored or loaded; `findings` holds `(code, text)` for each error found."""

    def __init__(self, message: str, findings: Sequence[tuple[str, str]], *, hint: str = "") -> None:
        super().__init__("\n".join([message, *(f"  [{code}] {text}" for code, text in findings)]), hint=hint)
        self.findings = tuple(findings)


class CouldNotTell(AdapterHubError):
    """A check could not be carried out, so neither yes nor no was found."""

    exit_code = 17


class EngineFailed(AdapterHubError):
    """An inference engine did not start, or ended by itself."""

    exit_code = 18
