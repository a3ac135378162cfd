"""Adapter names, bases and specs: the only parser of what users type for them.

    spec       = [ namespace "/" ] name [ "@" base ] [ specifiers ] [ "#sha256:" hex{8,64} ]
    base       = alias | org "/" model | "sha256:" hex{8,64} | path (starts with ".", "/" or "~/")
    specifiers = a PEP 440 specifier set: ==1.2   >=1.2,<2   ~=1.4

Every value prints as the text that parses to it. A refusal names the fault and, if one can be guessed, the text to type
instead.

Names, namespaces and aliases become folder and repository names, so each is refused where some file system or hub
would refuse or change it: `..`, `--` (it joins namespace and name in the store), a dot or dash at the end, and the
device names of Windows.

A path may hold spaces, `@` and single `=`, `!` or `~`. The first specifier operator (`==`, `~=`, `!=`, `<`, `>`)
or `#` ends it, so a folder with one of these in its name needs an alias. Spaces are also allowed inside the
specifiers, as in PEP 440, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, NewType, NoReturn

from adapterhub.core.errors import SpecError, shown
from adapterhub.core.versions import lies_in

if TYPE_CHECKING:
    from packaging.version import Version

AdapterName = NewType("AdapterName", str)
"""A lower-case adapter name; only `parse_name` makes one."""

BaseKind = Literal["alias", "hub", "digest", "path"]

MAX_WORD_CHARACTERS = 96
MAX_SPEC_CHARACTERS = 4096
MAX_SPECIFIERS_CHARACTERS = 256
MAX_VERSION_CHARACTERS = 64

_EXAMPLE = "as in `legal-qa@base-7b` or `acme/legal-qa@base-7b>=1.2,<2`"
_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_UPPER = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
_USUAL_WORD = re.compile(r"[a-z0-9][a-z0-9_]*(?:[.-][a-z0-9_]+)*")
_DIGEST_PREFIX = re.compile(r"sha256:[0-9a-f]{8,64}")
_OPERATOR = re.compile(r"[<>]|[=!~]=")
_OPERATOR_CHARACTER = re.compile(r"[<>=!~]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Lower bound before upper bound reads as people write it: `>=1.2,<2`.
_OPERATOR_ORDER = ("==", "~=", ">=", ">", "<=", "<", "!=")


def parse_name(text: str) -> AdapterName:
    """Return the adapter name that `text` spells: `[a-z0-9][a-z0-9._-]{0,95}`, safe as a folder name.

    Raises:
        SpecError: with the first thing that is wrong.
    """
    _check_readable(text)
    return AdapterName(_word(text, "a name", text, upper=False))


def parse_namespace(text: str) -> str:
    """Return the namespace that `text` spells: like a name, but upper case is allowed, as organisations on hubs use it.

    Raises:
        SpecError: with the first thing that is wrong.
    """
    _check_readable(text)
    return _word(text, "a namespace", text)


def parse_version(text: str) -> str:
    """`text`, a PEP 440 version, in its normal form: `v1.0` is `1.0`, `1.0-RC1` is `1.0rc1`.

    Raises:
        SpecError: unless it is one, of at most 64 characters.
    """
    return str(version_of(text))


def parse_released(text: str) -> str:
    """As `parse_version`, for a version to publish: a local one (`1.0+x`), which pip takes for `==1.0`, is refused."""
    version = version_of(text)
    if version.local is not None:
        raise SpecError(text, f"a release has no local part `+{version.local}`", hint=f"write `{version.public}`")
    return str(version)


@lru_cache(maxsize=1 << 14)
def version_key(text: str) -> str:
    """One text for all versions that PEP 440 calls equal: `1` for `1.0` and `1.0.0`; errors as of `parse_version`."""
    from packaging.utils import canonicalize_version

    return canonicalize_version(str(version_of(text)))


def version_order(text: str) -> bytes:
    """Bytes that sort as PEP 440 sorts versions, for an index of a database; errors as of `parse_version`.

    A number is its length and its digits of 256; a part that is missing sorts where PEP 440 puts it. Equal versions,
    such as `1.0` and `1.0.0`, have the same.
    """
    version = version_of(text)
    release = list(version.release)
    while len(release) > 1 and not release[-1]:
        release.pop()
    name, number = version.pre or ("", 0)
    before_all = version.pre is None and version.post is None and version.dev is not None
    pre = b"\0" if before_all else b"\3" if version.pre is None else b"\1" + name[:1].encode() + _sorted(number)
    post = b"\0" if version.post is None else b"\1" + _sorted(version.post)
    dev = b"\3" if version.dev is None else b"\1" + _sorted(version.dev)
    parts = version.local.split(".") if version.local is not None else ()
    local = (b"\2" + _sorted(int(one)) if one.isdigit() else b"\1" + one.encode() + b"\0" for one in parts)
    return b"".join([_sorted(version.epoch), *map(_sorted, release), b"\0", pre, post, dev, *local])


def _sorted(number: int) -> bytes:
    size = max(1, (number.bit_length() + 7) // 8)
    return bytes([size]) + number.to_bytes(size, "big")


@lru_cache(maxsize=1 << 14)
def version_of(text: str) -> Version:
    """As `parse_version`, as a value that compares; a name may have ten thousand versions, each looked at thrice."""
    from packaging.version import InvalidVersion, Version

    if len(text) > MAX_VERSION_CHARACTERS:
        raise SpecError(text, f"a version has at most {MAX_VERSION_CHARACTERS} characters, this has {len(text)}")
    try:
        version = Version(text)
    except InvalidVersion:
        raise SpecError(
            text, "not a version, as PEP 440 writes them: 1.0, 1.2.3, 2.0rc1", hint="write it as `1.2.0`"
        ) from None
    if text != text.strip():
        raise SpecError(text, "a version holds no spaces", hint=f"write `{version}`")
    return version


def looks_like_revision(text: str) -> bool:
    """Whether other tools would write `text` after `@`: a version, main, master, latest, or the start of a commit."""
    if text in {"main", "master", "latest"} or re.fullmatch(r"[0-9a-f]{7,40}", text):
        return True
    # `7b` reads as "7, beta 0" in PEP 440, but people call a base so by its size.
    return _is_version(text) and not re.fullmatch(r"[0-9]+[bB]", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSpec:
    """A base as typed after `@` or `--base`; nothing is looked up. `text` is what was typed, `~/` unexpanded."""

    kind: BaseKind
    text: str

    @classmethod
    def parse(cls, text: str) -> BaseSpec:
        """Return the base that `text` names.

        Raises:
            SpecError: with the first thing that is wrong.
        """
        _check_readable(text)
        return cls(kind=_base_kind(text, text), text=text)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """Which adapter a user asks for.

    `specifiers` is a normal PEP 440 set, "" for any version; `digest_prefix` starts with `sha256:`.
    """

    namespace: str | None
    name: AdapterName
    base: BaseSpec | None
    specifiers: str
    digest_prefix: str | None

    @classmethod
    def parse(cls, text: str) -> AdapterSpec:
        """Return the spec that `text` spells.

        Raises:
            SpecError: with the first thing that is wrong and, where one can be guessed, what to type instead.
        """
        _check_readable(text)
        if text[:1] in {".", "/"}:
            raise SpecError(text, f"a path is not an adapter name, {_EXAMPLE}",
                            hint="`adapt add FOLDER --name NAME` takes a folder into the store")  # fmt: skip
        if _URL.match(text):
            raise SpecError(text, f"a URL is not an adapter name, {_EXAMPLE}",
                            hint=_hint_for_url(text))  # fmt: skip
        body, hashed, digest = text.partition("#")
        if hashed and not _DIGEST_PREFIX.fullmatch(digest):
            _refuse_digest(digest, text, after="#")
        who, base, specifiers = _parts(body, text)
        namespace, slash, name = who.rpartition("/")
        if "/" in namespace:
            raise SpecError(text, f"more than one `/` in the name, {_EXAMPLE}")
        return cls(
            namespace=_word(namespace, "a namespace", text) if slash else None,
            name=AdapterName(_word(name, "a name", text, upper=False)),
            base=None if base is None else BaseSpec(kind=_base_kind(base, text), text=base),
            specifiers=_specifiers(specifiers, text) if specifiers else "",
            digest_prefix=digest or None,
        )

    def __str__(self) -> str:
        base = "" if self.base is None else f"@{self.base}"
        digest = "" if self.digest_prefix is None else f"#{self.digest_prefix}"
        return f"{self.full_name}{base}{self.specifiers}{digest}"

    @property
    def full_name(self) -> str:
        """`acme/legal-qa`, or `legal-qa` where no namespace was given."""
        return self.name if self.namespace is None else f"{self.namespace}/{self.name}"

    @property
    def is_exact(self) -> bool:
        """Whether it names one version, by `==` or by digest."""
        return self.pinned_version is not None or self.digest_prefix is not None

    @property
    def pinned_version(self) -> str | None:
        """The version after an exact `==` (`==1.*` is not one), or None."""
        exact = (c[2:] for c in self.specifiers.split(",") if c.startswith("==") and not c.endswith(".*"))
        return next(exact, None)

    @property
    def below(self) -> str | None:
        """The version of the lowest `<` clause, such as `2` in `>=1,<2`, or None."""
        from packaging.version import Version

        clauses = (c[1:] for c in self.specifiers.split(",") if c.startswith("<") and not c.startswith("<="))
        return min(clauses, key=Version, default=None)

    @property
    def asks_for_prereleases(self) -> bool:
        """Some clause other than `!=` names a pre-release or development version, or a digest is asked for."""
        if self.digest_prefix is not None:
            return True
        if not re.search(r"[a-z]", self.specifiers):
            return False
        from packaging.version import Version

        clauses = (c for c in self.specifiers.split(",") if not c.startswith("!="))
        return any(Version(c.lstrip("<>=~").removesuffix(".*")).is_prerelease for c in clauses)

    def matches(self, version: str) -> bool:
        """Return whether `version` satisfies the specifiers by PEP 440; a pre-release counts like any other version.

        `==1.0` means every spelling of that version, but no local one: `1.0+x` is another version, which may come from
        anyone. So what `==` takes is what may exist once.

        Raises:
            SpecError: `version` is not one.
        """
        asked = version_of(version)
        if not self.specifiers:
            return True
        pinned = self.pinned_version if asked.local is not None else None
        if pinned is not None and version_of(pinned) != asked:
            return False
        return lies_in(asked, self.specifiers)


def hint_for_unknown_base(spec: AdapterSpec) -> str:
    """Return a command to type when `spec` names no base and looks like something else; "" otherwise."""
    if spec.base is None or spec.base.kind not in {"alias", "hub"}:
        return ""
    text, name = spec.base.text, spec.full_name
    if _is_version(text) and looks_like_revision(text):
        return f"versions are written `{name}=={parse_version(text)}`; `@` names the base"
    if looks_like_revision(text):
        return f"versions are written `{name}==1.0.0`; `@` names the base, not a branch or commit"
    return f"a folder is written `./{text}`" if spec.base.kind == "hub" else ""


def _hint_for_url(text: str) -> str:
    """Return a command to type instead of the address of an image in an OCI registry, or of any other URL."""
    image = re.fullmatch(r"oci://(?P<host>[^@]+)/(?P<name>[^/:@]+/[^/:@]+)(?::(?P<tag>[^/:@]+))?(@.*)?", text)
    if image is None:
        return "write `namespace/name`; another server is given with `--remote`"
    version = f"=={image['tag']}" if image["tag"] and _is_version(image["tag"]) else ""
    return f"write `{image['name']}{version} --remote oci://{image['host']}`"


def _parts(body: str, whole: str) -> tuple[str, str | None, str]:
    """`body`, a spec without its digest, cut into the name, the base (None without `@`) and the specifiers."""
    cut = re.search(r"[@<>=!~]", body)
    who, rest = (body[: cut.start()], body[cut.start() :]) if cut else (body, "")
    if not rest.startswith("@"):
        if "@" in rest:
            specifiers, _, base = rest.partition("@")
            raise SpecError(whole, "the base stands before the version", hint=f"write `{who}@{base}{specifiers}`")
        return who, None, rest
    after = rest[1:]
    end = (_OPERATOR if _is_path(after) else _OPERATOR_CHARACTER).search(after)
    base, specifiers = (after[: end.start()], after[end.start() :]) if end else (after, "")
    if not base:
        hint = f"without a base, write `{who}{specifiers}`" if who and specifiers else ""
        raise SpecError(whole, f"the base after `@` is missing, {_EXAMPLE}", hint=hint)
    return who, base, specifiers


ADD_FIRST: Final = "`adapt add FILE` makes an adapter of a LoRA file; then use its name"
"""The hint for a file where an adapter is expected."""


def names_folder(text: str) -> bool:
    """Whether `text` is a folder rather than a name or spec. Only its first character counts, not what is on disk.

    So no folder of the working directory can take the place of an adapter of the library.
    """
    return text.startswith((".", "/", "~"))


def _is_path(text: str) -> bool:
    return text.startswith((".", "/", "~/"))


def _base_kind(text: str, whole: str) -> BaseKind:
    """Return the kind of base that `text` names; refused as a part of `whole`."""
    if _is_path(text):
        _check_path(text, whole)
        return "path"
    if _URL.match(text):
        raise SpecError(whole, "a URL does not name a base", hint="write its id on the hub, `org/model`")
    if text[:7].lower() == "sha256:":
        if not _DIGEST_PREFIX.fullmatch(text):
            _refuse_digest(text, whole, after="@")
        return "digest"
    if "@" in text:
        raise SpecError(
            whole,
            "more than one `@`: it names the base, and versions are written `==1.0.0`",
            hint="write it as `legal-qa@base-7b==1.0.0`",
        )
    if "\\" in text:
        raise SpecError(whole, "a folder is written with `/` and starts with `.` or `/`",
                        hint="" if ":" in text else f"write `./{text.replace(chr(92), '/')}`")  # fmt: skip
    org, slash, model = text.rpartition("/")
    if not slash:
        _word(text, "the name of a base", whole)
        return "alias"
    if "/" in org:
        raise SpecError(whole, "a base on the hub is `org/model`, with one `/`", hint=f"a folder is written `./{text}`")
    _word(org, "an organisation", whole, folder=False)
    _word(model, "a model name", whole, folder=False)
    return "hub"


def _check_path(text: str, whole: str) -> None:
    """Raise for a path that would print as another spec: `parse(str(spec))` must return the spec."""
    clash = _OPERATOR.search(text) or re.search(r"#|[ =!~]\Z", text)
    if clash:
        where = "at its end" if clash.end() == len(text) else "in it"
        raise SpecError(whole, f"a path with `{clash.group()}` {where} is ambiguous here",
                        hint="`adapt base add FOLDER --as NAME` gives the folder a name")  # fmt: skip


def _check_readable(text: str) -> None:
    """Raise for text that is too long or holds a character that does not print."""
    if len(text) > MAX_SPEC_CHARACTERS:
        raise SpecError(text, f"at most {MAX_SPEC_CHARACTERS} characters are read, this has {len(text)}")
    if not text.isprintable():
        odd = next(c for c in text if not c.isprintable())
        raise SpecError(
            text,
            f"holds the character U+{ord(odd):04X}, which does not print",
            hint="remove it; a name has letters, digits and `._-`",
        )


def _refuse_digest(text: str, whole: str, *, after: str) -> NoReturn:
    digits = text[7:] if text[:7].lower() == "sha256:" else text
    guess = f"sha256:{digits.lower()}"
    hint = f"write `{after}{guess}`" if _DIGEST_PREFIX.fullmatch(guess) and guess != text else ""
    raise SpecError(whole, f"after `{after}`: expected `sha256:` and 8 to 64 lower-case hex digits", hint=hint)


def _is_version(text: str) -> bool:
    try:
        parse_version(text)
    except SpecError:
        return False
    return True


def _specifiers(text: str, whole: str) -> str:
    """`text`, not empty, as a PEP 440 set in normal form: no spaces, no repeats, one order. Errors name `whole`.

    `===` is refused: it compares text, and every version here has a normal form.
    """
    from packaging.specifiers import InvalidSpecifier, Specifier
    from packaging.version import Version

    if len(text) > MAX_SPECIFIERS_CHARACTERS:
        raise SpecError(whole, f"a version range has at most {MAX_SPECIFIERS_CHARACTERS} characters")
    clauses = set()
    for clause in filter(None, (part.strip() for part in text.split(","))):
        if clause.startswith("==="):
            raise SpecError(whole, "`===` compares text, not versions", hint=f"write `=={clause[3:].strip()}`")
        try:
            specifier = Specifier(clause)
        except InvalidSpecifier:
            raise SpecError(
                whole,
                f"`{shown(clause)}` is not a version range, as in `==1.0`, `>=1.2,<2` or `~=1.4`",
                hint=_better_clause(clause, whole),
            ) from None
        version = specifier.version.removesuffix(".*")
        wildcard = specifier.version[len(version) :]
        clauses.add((_OPERATOR_ORDER.index(specifier.operator), specifier.operator, f"{Version(version)}{wildcard}"))
    return ",".join(f"{operator}{version}" for _, operator, version in sorted(clauses))


def _better_clause(clause: str, whole: str) -> str:
    """Return a hint with the likely meaning of `clause`, or ""."""
    version = clause.lstrip("=~<>!^ ")
    if (parted := _parted(clause)) != clause:
        return f"write `{_instead(whole, clause, parted)}`"
    if not _is_version(version):
        return ""
    if clause.startswith("=") or version == clause:
        return f"write `{_instead(whole, clause, f'=={version}')}`"
    if clause.startswith("~") and re.fullmatch(r"[0-9.]+", version):
        return f"write `~={version}.0`, or `>={version}` for anything newer"
    return ""


def _parted(text: str) -> str:
    """Put a comma where two clauses of a version range have only a space between them, as npm writes them."""
    return re.sub(r"(?<=[0-9A-Za-z*]) +(?=[<>=!~]+ *[0-9])", ",", text)


def _word(word: str, what: str, whole: str, *, upper: bool = True, folder: bool = True) -> str:
    """`word`, checked; errors name `whole`. `folder` adds the rules that only matter for folders made here."""
    if len(word) <= MAX_WORD_CHARACTERS and _USUAL_WORD.fullmatch(word) and word.partition(".")[0] not in _DEVICES:
        return word  # one of ten thousand; the rest finds the words for what is wrong
    if not word:
        raise SpecError(whole, f"{what} is missing, {_EXAMPLE}")
    if len(word) > MAX_WORD_CHARACTERS:
        raise SpecError(whole, f"{what} has at most {MAX_WORD_CHARACTERS} characters, this has {len(word)}")
    odd = next((c for c in word if c not in _LOWER and c not in "._-" and not (upper and c in _UPPER)), None)
    if odd is not None:
        _refuse_character(odd, word, f"{what} holds only {'a-z, A-Z' if upper else 'a-z'}, 0-9 and `._-`", whole)
    if word[0] in "._-":
        raise SpecError(
            whole,
            f"{what} starts with a letter or digit, not with `{word[0]}`",
            hint=f"remove `{word[0]}` from its beginning",
        )
    for pair in ("..", "--"):
        if pair in word:
            raise SpecError(whole, f"{what} cannot hold `{pair}`", hint="use a single `-` or `.`")
    if word[-1] in ".-":
        raise SpecError(
            whole,
            f"{what} ends with a letter, a digit or `_`, not with `{word[-1]}`",
            hint=f"remove `{word[-1]}` from its end",
        )
    if folder and word.partition(".")[0].lower() in _DEVICES:
        raise SpecError(
            whole,
            f"{what} cannot be `{word}`: Windows keeps this for a device",
            hint=f"choose another name, such as `{word}-adapter`",
        )
    return word


def _refuse_character(odd: str, word: str, rule: str, whole: str) -> NoReturn:
    """Refuse `odd`, the first character of `word` that `rule` forbids, with the likely meaning where there is one."""
    head, _, tail = word.partition(odd)
    if odd in _UPPER:
        lower = word.lower()
        reason, better = f"{rule}, not `{odd}`", lower if set(lower) <= {*_LOWER, *"._-"} else ""
    elif odd in ": ^" and head and _is_version(tail):
        operator = "~=" if odd == "^" and "." in tail else "=="
        reason, better = f"versions are written `{operator}{tail}`, not `{odd}{tail}`", f"{head}{operator}{tail}"
    elif odd == " ":
        start = re.search(r"[<>=!~]+ *", whole)
        ranges = start.end() if start else len(whole)
        closed = re.sub(r" *([@<>=!~,#/]+) *", r"\1", f"{whole[:ranges]}{_parted(whole[ranges:])}".strip())
        hint = f"write `{closed}`" if closed != whole else ""
        raise SpecError(whole, "spaces are allowed only in a folder path or in a version range", hint=hint)
    else:
        reason, better = f"{rule}, not `{odd}` (U+{ord(odd):04X})", ""
    raise SpecError(whole, reason, hint=f"write `{_instead(whole, word, better)}`" if better else "")


def _instead(whole: str, part: str, better: str) -> str:
    """`whole` with `better` for `part`; only `better` where `part` stands in it more than once."""
    return whole.replace(part, better) if whole.count(part) == 1 else better


_MOST_CHARACTERS: Final = 64


def made_name(text: str) -> str:
    """`text` in lower case, a dash for each run of characters that names forbid; "" if nothing is left."""
    name = re.sub(r"[^a-z0-9._]+", "-", text.lower())
    return re.sub(r"\.{2,}", ".", re.sub(r"-{2,}", "-", name)).strip("._-")[:_MOST_CHARACTERS].rstrip(".-")


_LOOK_ALIKE: Final = str.maketrans({"-": None, "_": None, ".": None, "0": "o", "1": "l", "i": "l"})


def fold(name: str) -> str:
    """Return the key that look-alike names share.

    It ignores case and `-_.`, and treats 0 and O, and 1, l and I, as equal.
    """
    return name.casefold().translate(_LOOK_ALIKE) or name.casefold()


def is_one_edit_apart(a: str, b: str) -> bool:
    """Return whether the names differ by one inserted, deleted or replaced character, or by two swapped neighbours.

    Replacing one digit by another does not count: people number adapters (`qa-r4`, `qa-r8`) and tell them apart.
    """
    if a == b or abs(len(a) - len(b)) > 1:
        return False
    start = _same_start(a, b)
    rest_a, rest_b = a[start:], b[start:]
    end = _same_start(rest_a[::-1], rest_b[::-1])
    middle_a, middle_b = rest_a[: len(rest_a) - end], rest_b[: len(rest_b) - end]
    if len(middle_a) > 1 or len(middle_b) > 1:
        return len(middle_a) == len(middle_b) == len("ab") and middle_a == middle_b[::-1]
    return not (middle_a.isdigit() and middle_b.isdigit())


def one_edit_from(name: str, letters: Iterable[str]) -> Iterator[str]:
    """Every text of `name` with one of `letters` inserted or replaced, one character deleted, or two swapped."""
    for at in range(len(name) + 1):
        head, tail = name[:at], name[at:]
        if tail:
            yield head + tail[1:]
            yield head + tail[1:2] + tail[0] + tail[2:]
        for letter in letters:
            yield head + letter + tail
            yield head + letter + tail[1:]


def _same_start(a: str, b: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    for index, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return index
    return min(len(a), len(b))


_PART: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
COUNTER: Final = "x-hf-download-counter"
"""The header with which clients of the Hub say that a request belongs to a download."""
COUNTED: Final = "weights"
"""Its value where this very request stands for one download, as `adapt` sends it once a build."""
_HUB_ID: Final = re.compile(rf"(?:{_PART}/)?{_PART}")


def is_hub_id(text: str) -> bool:
    """Return whether `text` is `org/model` or `model` as the Hub allows them: never a path, an option or a URL.

    Letters, digits and `._-`, at most 96 in a part, none of `.-` at its ends, and neither `--` nor `..` inside of it
    (the rule of `huggingface_hub.utils.validate_repo_id`).
    """
    return _HUB_ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def parse_hub_id(text: str) -> str:
    """`text`, checked to be a Hub id.

    Raises:
        ValueError: it is not.
    """
    if not is_hub_id(text):
        raise ValueError(f"expected a Hub id such as org/model, got {shown(text)}")
    return text
