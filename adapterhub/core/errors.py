"""The error tree: the class of every refusal, its exit code, and a hint at what to do next.

AdapterHubError                  exit code
├── UsageProblem                  2   the request is invalid as typed
│   ├── SpecError                     an adapter spec or base name does not parse
│   ├── AmbiguousSpec                 a spec matches several builds
│   └── MissingExtra                  an extra that is needed is not installed
├── NotFound                     10   nothing has that name
│   ├── AdapterNotFound
│   ├── BaseNotFound
│   └── BlobNotFound
├── Incompatible                 11   something has that name, but nothing fits
│   ├── NoCompatibleRelease           one reason per release
│   ├── BaseMismatch                  made for another base
│   ├── UnsupportedAdapter            features that cannot be attached here
│   ├── WithoutEffect                 it changes no answer
│   ├── MergeRefused                  the adapters cannot be added up
│   └── ProjectConflict               requirements of a project conflict
├── DigestMismatch               12   the bytes do not match their digest
├── LogMismatch                  12   a registry's log has another past, or another release
├── RemoteUnreachable            13   network, server or offline mode
├── NotAllowed                   14   no right, or a policy forbids it
│   ├── AdapterDenied                 its publisher or the server's operator has withdrawn it
│   ├── DiskFull                      no room
│   └── SignatureRefused              a signature is missing, broken, forged, or not for this
├── Conflict                     15   the target has other content, or is locked
│   ├── ReleaseExists
│   ├── StoreLocked
│   └── StaleLock                     a lock file no longer matches its project
├── Malformed                    16   the input breaks its own format
│   ├── MalformedTensorFile
│   ├── MalformedConfig
│   ├── MalformedManifest
│   ├── ChatTemplateRefused           a chat template is broken, or passes a limit
│   └── RefusedAdapter                the findings of `verify` have the reasons
├── CouldNotTell                 17   a check could not run
├── BehaviourChanged              3   answers no longer match the contract of an adapter
└── EngineFailed                 18   an inference engine did not start, or stopped by itself

Exit codes 0 (done), 1 (our bug) and 130 (interrupted) belong to no class; 3 also means that some items failed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

from adapterhub.core.redaction import without_secrets

EXIT_BUG = 1
EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130

SHOWN_CHARACTERS = 80
PROBLEMS_SHOWN = 50
_LISTED_WHOLE = 5
_QUOTED = re.compile(r"`[^`]*`")
_READ_BEYOND = 4096  # a secret that the cut would halve is removed before


def shown(value: object, limit: int = SHOWN_CHARACTERS) -> str:
    """`value` made safe for one line of a terminal or log: no secrets, control characters escaped, cut at `limit`.

    Pass all text from files and servers through it: such text may hold escape sequences, bidi marks, or the token of
    the request that it answers.
    """
    text = value if isinstance(value, str) else repr(value)
    text = without_secrets(text[: limit + _READ_BEYOND])[: limit + 1]  # escapes only make it longer
    if len(text) <= limit and text.isprintable():
        return text
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def reason_of(error: BaseException) -> str:
    """Return the message of one of our errors, and what Python shows of any other."""
    return error.message if isinstance(error, AdapterHubError) else shown(repr(error), 500)


def first_lines(lines: Sequence[str], most: int = PROBLEMS_SHOWN) -> list[str]:
    """Return the first `most` of the lines, and a line that counts the rest."""
    rest = len(lines) - most
    return [*lines[:most], *([f"and {rest:,} more"] if rest > 0 else [])]


def alike_once(lines: Sequence[str]) -> list[str]:
    """Return the lines; of more than a few that differ only in one `quoted` name, keep the first and count the others.

    A problem of a model has a line for each of its modules, which may be sixty thousand.
    """
    forms = [[line[: name.start()] + "``" + line[name.end() :] for name in _QUOTED.finditer(line)] for line in lines]
    counts = Counter(form for line in forms for form in line)
    kinds: dict[str, list[str]] = {}
    for line, own in zip(lines, forms, strict=True):
        form = max(own, key=counts.__getitem__, default=line)
        kinds.setdefault(form if counts[form] > _LISTED_WHOLE else line, []).append(line)
    return [first if not rest else f"{first}; and {len(rest):,} more like it" for first, *rest in kinds.values()]


def problem_list(title: str, problems: Sequence[str], most: int = PROBLEMS_SHOWN) -> str:
    """Return a title and one indented line for each problem; beyond `most` only their number."""
    return "\n".join([title, *(f"  {line}" for line in first_lines(problems, most))])


def explained_by(code: str) -> str:
    """Return the hint to read the explanation of a code."""
    return f"`adapt help {code}` says what to do"


class AdapterHubError(Exception):
    """A refusal in plain words. `hint` is a command or step that helps, or empty; `usual_hint` is that of the class."""

    exit_code: ClassVar[int] = EXIT_BUG
    usual_hint: str = ""
    """The command line prints it if there is no `hint`."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Go to another process, and come out of a copy, with every fact; the arguments of `__init__` are gone."""
        return _remade, (type(self), self.args, dict(self.__dict__))


_E = TypeVar("_E", bound=AdapterHubError)


def _remade(kind: type[_E], args: tuple[object, ...], facts: Mapping[str, object]) -> _E:
    made = kind.__new__(kind)
    made.args = args
    made.__dict__ |= facts
    return made


CHECK_FILE = "check the path and its permissions with `ls -l`"
SAVE_UTF8 = "save the file as UTF-8"
SEARCH_THERE = "`adapt search --remote NAME` lists the adapters of a server"


def no_adapter(name: object, places: str, *, hint: str) -> AdapterNotFound:
    """Return the error for a name or spec that nothing in `places` has, in the one wording for this."""
    return AdapterNotFound(f"no adapter `{shown(name if isinstance(name, str) else str(name))}` in {places}", hint=hint)


def reworded(error: _E, message: str | None = None, *, hint: str | None = None) -> _E:
    """Return a copy of `error` with another message or hint; its class and facts stay."""
    text = error.message if message is None else message
    facts = error.__dict__ | {"message": text, "hint": error.hint if hint is None else hint}
    return _remade(type(error), (text,), facts)


class UsageProblem(AdapterHubError):
    """The request is invalid as typed."""

    exit_code = 2


class SpecError(UsageProblem):
    """An adapter spec, name or base does not parse; `text` is what was typed."""

    def __init__(self, text: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"`{shown(text)}`: {reason}", hint=hint)
        self.text = text
        self.reason = reason


class AmbiguousSpec(UsageProblem):
    """A spec matches several builds; `choices` holds `(spec to type, what it is)` for each."""

    def __init__(self, message: str, choices: Sequence[tuple[str, str]], *, hint: str = "") -> None:
        super().__init__("\n".join([message, *(f"  {spec}  {what}" for spec, what in choices)]), hint=hint)
        self.summary = message
        self.choices = tuple(choices)


class MissingExtra(UsageProblem):
    """It needs an extra that is not installed; `extra` is its name, `packages` are those that were not found."""

    def __init__(self, what: str, packages: Sequence[str], extra: str) -> None:
        several = len(packages) > 1
        names = " and ".join(filter(None, [", ".join(f"`{name}`" for name in packages[:-1]), f"`{packages[-1]}`"]))
        needed = f"the packages {names}, which are" if several else f"the package {names}, which is"
        hint = f"`pip install 'adapterhub[{extra}]'` installs {'them' if several else 'it'}"
        super().__init__(f"{what} needs {needed} not installed", hint=hint)
        self.extra = extra
        self.packages = tuple(packages)


class NotFound(AdapterHubError):
    """Nothing has that name."""

    exit_code = 10


class AdapterNotFound(NotFound):
    """No place that was searched has a release of that name."""


class BaseNotFound(NotFound):
    """No registered base, folder or hub repository has that name."""


class BlobNotFound(NotFound):
    """The store holds no object with that digest."""

    usual_hint = "`adapt doctor --repair` fetches missing files, and lists those that no server has"


class Incompatible(AdapterHubError):
    """Something has that name, but nothing fits."""

    exit_code = 11


class NoCompatibleRelease(Incompatible):
    """Every release was refused; `refusals` holds `(release, reason)` for each."""

    def __init__(self, message: str, refusals: Sequence[tuple[str, str]], *, hint: str = "") -> None:
        lines = [f"  {release}  {reason}" for release, reason in refusals]
        super().__init__("\n".join([message, *lines]), hint=hint)
        self.summary = message
        self.refusals = tuple(refusals)


class BaseMismatch(Incompatible):
    """The adapter was made for a base other than the one it would run on."""

    usual_hint = "`adapt base compare BASE OTHER` shows how two bases differ"


class UnsupportedAdapter(Incompatible):
    """The adapter may be sound but cannot be attached here; `reasons` names each feature that prevents it."""

    usual_hint = "`adapt verify NAME --engine all` shows the programs that read it unchanged"

    def __init__(self, message: str, reasons: Sequence[str] = (), *, hint: str = "") -> None:
        super().__init__("\n".join([message, *(f"  {r}" for r in reasons)]), hint=hint)
        self.reasons = tuple(reasons)


class WithoutEffect(Incompatible):
    """The adapter was loaded and changes nothing: the model says the same with it and without it."""

    usual_hint = "`adapt verify NAME --base BASE` shows whether the base has its modules"


class MergeRefused(Incompatible):
    """The adapters cannot be added up; `reasons` names each module or feature that prevents it.

    The message has a line for each kind of reason.
    """

    usual_hint = "`adapt compare NAME OTHER --diff` shows where two adapters differ"

    def __init__(self, message: str, reasons: Sequence[str] = (), *, hint: str = "") -> None:
        super().__init__(problem_list(message, alike_once(reasons)), hint=hint)
        self.reasons = tuple(reasons)


class ProjectConflict(Incompatible):
    """The requirements of a project conflict; `reasons` holds `(place in the project, what is there)` for each."""

    def __init__(self, message: str, reasons: Sequence[tuple[str, str]], *, hint: str = "") -> None:
        super().__init__("\n".join([message, *(f"  {place}  {what}" for place, what in reasons)]), hint=hint)
        self.summary = message
        self.reasons = tuple(reasons)


class DigestMismatch(AdapterHubError):
    """The bytes do not match their digest."""

    exit_code = 12

    def __init__(self, where: str, *, expected: str, actual: str, hint: str = "") -> None:
        super().__init__(
            f"{shown(where, 200)}: content does not match its digest: expected {expected}, got {actual}", hint=hint
        )
        self.where = where
        self.expected = expected
        self.actual = actual


class LogMismatch(AdapterHubError):
    """The log of a registry has another past than it had, or has a release not at all or with other bytes."""

    exit_code = 12


class RemoteUnreachable(AdapterHubError):
    """A server did not answer or answered with an error, or `--offline` forbids contacting it.

    `status` is the HTTP status of the answer, None without one.
    """

    exit_code = 13

    def __init__(self, message: str, *, hint: str = "", status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        if status in {401, 403}:
            self.usual_hint = "`adapt remote login NAME` stores a token with the right for this"
        elif status is not None and status >= 500:
            self.usual_hint = "try again in a few minutes; if it goes on, tell the operator of the server"
        else:
            self.usual_hint = "check the address and the network; `adapt remote list` shows the servers"


class NotAllowed(AdapterHubError):
    """You lack the right to do this, or a policy forbids it."""

    exit_code = 14


class AdapterDenied(NotAllowed):
    """A server does not serve this adapter any more: its publisher yanked it, or the operator denies it."""

    usual_hint = "use another version, or ask the operator of the server"


class DiskFull(NotAllowed):
    """The disk, a quota or a file-size limit is full; nothing incomplete was kept."""

    usual_hint = "free some space; `adapt cache show` lists what the library uses"


class SignatureRefused(NotAllowed):
    """A signature is missing, broken, forged, for something else, or by a key that may not sign this.

    `reason` is one word for programs, such as `forged` or `unsigned` (`adapterhub.trust.signing` lists them); `clause`
    says the same about `what` in words. `ending` states what the refusal left unchanged.
    """

    def __init__(
        self, what: str, clause: str, *, reason: str, hint: str = "", ending: str = "Nothing was stored"
    ) -> None:
        super().__init__(f"refused {what}: {clause}. {ending}", hint=hint)
        self.what = what
        self.clause = clause
        self.reason = reason


class NamespaceBound(NotAllowed):
    """The user assigned a namespace or a name to one remote, and another place claims it."""


class ProjectNotTrusted(NotAllowed):
    """A project names servers that the user has not trusted."""


class Conflict(AdapterHubError):
    """The target exists with other content, or another process holds the lock."""

    exit_code = 15


class ReleaseExists(Conflict):
    """A release of that name and version exists with other bytes; releases never change."""


class StoreLocked(Conflict):
    """Another process holds the lock of the store."""


class StaleLock(Conflict):
    """The lock file no longer matches its project; `problems` has the reasons, one sentence each."""

    def __init__(self, where: str, problems: Sequence[str], *, hint: str = "") -> None:
        summary = f"`{shown(where, 200)}` does not match the project. Nothing was changed"
        super().__init__("\n".join([summary, *(f"  {p}" for p in problems)]), hint=hint)
        self.problems = tuple(problems)


class Malformed(AdapterHubError):
    """The input breaks its own format."""

    exit_code = 16


class MalformedTensorFile(Malformed):
    """A file is not valid safetensors; `code` is E_CONTAINER, E_LIMIT or E_TENSOR_NAME."""

    def __init__(self, where: str, reason: str, *, code: str = "E_CONTAINER", hint: str = "") -> None:
        super().__init__(f"{shown(where, 200)}: {reason}", hint=hint)
        self.usual_hint = explained_by(code)
        self.where = where
        self.reason = reason
        self.code = code


class MalformedConfig(Malformed):
    """An `adapter_config.json` is unusable; `code` is E_CONFIG, E_REGEX, E_CODE or E_UNSUPPORTED."""

    def __init__(self, where: str, reason: str, *, code: str = "E_CONFIG", hint: str = "") -> None:
        super().__init__(f"{shown(where, 200)}: {reason}", hint=hint)
        self.usual_hint = explained_by(code)
        self.where = where
        self.reason = reason
        self.code = code


class MalformedManifest(Malformed):
    """An `adapterhub.json` breaks its schema; `problems` lists each problem with its path."""

    usual_hint = explained_by("E_MANIFEST")

    def __init__(self, where: str, problems: Sequence[str], *, hint: str = "") -> None:
        super().__init__(
            "\n".join([f"{shown(where, 200)}: not a usable manifest", *(f"  {p}" for p in problems)]), hint=hint
        )
        self.where = where
        self.problems = tuple(problems)


class ChatTemplateRefused(Malformed):
    """A chat template cannot be rendered; `reason` is `broken`, `forbidden` (by the sandbox) or `limits`."""

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        super().__init__(message, hint=hint or "pass `--raw`, `--template` or `--chat` to use another prompt form")
        self.reason = reason


class RefusedAdapter(Malformed):
    """The adapter must not be stored or loaded; `findings` holds `(code, text)` for each error."""

    def __init__(self, message: str, findings: Sequence[tuple[str, str]], *, hint: str = "") -> None:
        super().__init__("\n".join([message, *(f"  [{code}] {text}" for code, text in findings)]), hint=hint)
        self.usual_hint = explained_by(findings[0][0]) if findings else ""
        self.findings = tuple(findings)


class CouldNotTell(AdapterHubError):
    """A check could not run, so the answer is neither yes nor no."""

    exit_code = 17


class BehaviourChanged(AdapterHubError):
    """An adapter no longer does what a contract records, and the caller asked for one that does."""

    exit_code = EXIT_SOME_FAILED


class EngineFailed(AdapterHubError):
    """An inference engine did not start, or stopped by itself."""

    exit_code = 18
