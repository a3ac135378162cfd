"""The error tree: every refusal of this project, its exit code, and what to do next.

AdapterHubError                  exit code
├── UsageProblem                  2   the request cannot be understood
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
│   └── ProjectConflict               requirements of a project that exclude each other
├── DigestMismatch               12   bytes are not what their digest says
├── RemoteUnreachable            13   network, server or offline mode
├── NotAllowed                   14   no right, or a policy forbids it
│   ├── DiskFull                      no room
│   └── SignatureRefused              a signature is missing, broken, forged, or for something else
├── Conflict                     15   exists with other content, or locked
│   ├── ReleaseExists
│   ├── StoreLocked
│   └── StaleLock                     a lock file that no longer matches its project
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
    """`value` made safe for one line of a terminal: control characters escaped, cut at `limit` characters.

    Pass all text from files and servers through it: such text may hold escape sequences or bidi marks.
    """
    text = (value if isinstance(value, str) else repr(value))[: limit + 1]  # escapes only make it longer
    if len(text) <= limit and text.isprintable():
        return text
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def problem_list(title: str, problems: Sequence[str], most: int = PROBLEMS_SHOWN) -> str:
    """A title and one indented line for each problem; beyond `most` only their number."""
    rest = len(problems) - most
    lines = [*problems[:most], *([f"and {rest:,} more"] if rest > 0 else [])]
    return "\n".join([title, *(f"  {line}" for line in lines)])


class AdapterHubError(Exception):
    """A refusal in plain words. `hint` is a command or step that helps; it may be empty."""

    exit_code: ClassVar[int] = EXIT_BUG

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageProblem(AdapterHubError):
    """The request cannot be understood as typed."""

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
    """No release of that name in any source."""


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
    """The adapter was made for another base than the one given."""


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
    """Requirements of a project exclude each other; `reasons` holds `(place in the project, requirement)` each."""

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
    """A server could not be reached, answered with an error, or is off limits under `--offline`."""

    exit_code = 13


class NotAllowed(AdapterHubError):
    """No right to do this, or a policy forbids it."""

    exit_code = 14


class DiskFull(NotAllowed):
    """The disk is full, or a quota or file-size limit was reached. No partial output is kept."""


class SignatureRefused(NotAllowed):
    """A signature is missing, broken, forged, made with a key that may not sign this, or for something else.

    `reason` is one word for programs, such as `forged` or `unsigned` (`adapterhub.trust.signing` lists them); `clause`
    is the same reason as the end of a sentence about `what`. `ending` states what the refusal left unchanged.
    """

    def __init__(
        self, what: str, clause: str, *, reason: str, hint: str = "", ending: str = "Nothing was stored"
    ) -> None:
        super().__init__(f"refused {what}: {clause}. {ending}", hint=hint)
        self.what = what
        self.clause = clause
        self.reason = reason


class NamespaceBound(NotAllowed):
    """A namespace or name is bound to one remote, and another source offers it."""


class ProjectNotTrusted(NotAllowed):
    """A project names servers that the user has not agreed to."""


class Conflict(AdapterHubError):
    """It exists with other content, or another process holds the lock."""

    exit_code = 15


class ReleaseExists(Conflict):
    """A release of that name and version exists with other bytes; releases never change."""


class StoreLocked(Conflict):
    """Another process holds the store."""


class StaleLock(Conflict):
    """A lock file that no longer matches its project; `problems` holds one sentence for each difference."""

    def __init__(self, where: str, problems: Sequence[str], *, hint: str = "") -> None:
        summary = f"`{shown(where, 200)}` does not match the project. Nothing was changed"
        super().__init__("\n".join([summary, *(f"  {p}" for p in problems)]), hint=hint)
        self.problems = tuple(problems)


class Malformed(AdapterHubError):
    """Input that breaks its own format."""

    exit_code = 16


class MalformedTensorFile(Malformed):
    """A file that is not valid safetensors; `code` is E_CONTAINER, E_LIMIT or E_TENSOR_NAME."""

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
    """A check could not be completed, so the answer is unknown."""

    exit_code = 17


class EngineFailed(AdapterHubError):
    """An inference engine did not start, or ended by itself."""

    exit_code = 18
