"""The values of a contract's lines, checked one by one; every problem with its line and place."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

from adapterhub.core.digests import Digest, canonical_json, digest_of, parse_digest, strict_json
from adapterhub.core.disk.files import read_plain, read_typed
from adapterhub.core.errors import PROBLEMS_SHOWN, CouldNotTell, Malformed, problem_list, shown
from adapterhub.formats.contract.contract import (
    DEFAULT_RISE,
    ENCODERS,
    FAMILY,
    IMAGE,
    KEYS,
    MAX_CHOICES,
    SCHEMAS,
    WRITERS,
    Asked,
    Contract,
    Demand,
    Expect,
    Golden,
    ImageSettings,
    LeaveAlone,
    Recorded,
    schema_problems,
    unpacked,
    unpacked_latent,
    unpacked_odds,
)
from adapterhub.formats.contract.standards import DEFAULT_BOUNDS, NAMES, Bounds, range_problem
from adapterhub.formats.documents import JSON_KINDS, TOML_KINDS, DocumentReader, toml_of
from adapterhub.formats.manifest import CONTRACT_FILE
from adapterhub.formats.prompts.form import RAW, PromptForm, Turn

MAX_BYTES: Final = 256 << 10
MAX_LINES: Final = 256
MAX_LINE_BYTES: Final = 64 << 10
MAX_DEPTH: Final = 8
MAX_ASKED_CHARACTERS: Final = 16 << 10
"""Of one prompt: a tokenizer may be slow on a long one."""

MAX_ANSWER_TOKENS: Final = 512
MAX_PROMPT_TOKENS: Final = 1024
MAX_LABELS: Final = 1024
MAX_PACKED_CHARACTERS: Final = 6 << 10
MAX_IMAGES: Final = 32
MAX_SIDE: Final = 1024
"""Pixels of an image's width and height, which are multiples of 8."""

MAX_STEPS: Final = 50
MAX_SEED: Final = (1 << 31) - 1
MAX_GUIDANCE: Final = 100.0
_MAX_GAP: Final = 100.0
_LEAST_SENSITIVITY: Final = 0.1
_MAX_SENSITIVITY: Final = 100.0
_MAX_TOKEN: Final = 1 << 31
_MAX_TURNS: Final = 64
_ID: Final = re.compile(r"[a-z0-9-]{1,64}")
_ROLES: Final = ("system", "user", "assistant")
_HEAD: Final = (
    "schema",
    "kind",
    "prompt",
    "recorded",
    "bounds",
    "labels",
    "visibility",
    "image",
    "sensitivity",
    "rounding",
)
_GOLDEN: Final = (
    "golden", "id", "answer", "answer_sha256", "tokens", "prompt_tokens", "prompt_sha256", "loss", "base_loss",
    "margin", "odds", "base_odds", "logits", "vector", "seed", "latent", "gap",
)  # fmt: skip
_WANTED_WITH_TEXTS: Final = ("tokens", "loss", "base_loss", "margin")
_ODDS: Final = ("odds", "base_odds")
_OF_ANSWERS: Final = (*_WANTED_WITH_TEXTS, "answer", *_ODDS)
_OF_IMAGES: Final = ("seed", "latent", "gap")
_IMAGE: Final = ("width", "height", "steps", "guidance", "scheduler")
_LEAVE: Final = ("leave_alone", "id", "answer", "tokens", "loss", "rise", "same")


class ContractReader(DocumentReader):
    """Reads the values of the lines into a `Contract`; `problems` lists the faults."""

    kinds = JSON_KINDS
    null_is_absent = False
    most_characters: ClassVar[int] = MAX_ASKED_CHARACTERS

    def __init__(self) -> None:
        super().__init__()
        self.vocabulary = _MAX_TOKEN
        self.kind = ""
        self.has_texts = True
        self.ids: set[str] = set()

    def contract(self, values: list[dict[str, Any]]) -> Contract | None:
        """Return the contract of all lines; None after a problem."""
        head, *rest = values or [{}]
        kinds = SCHEMAS.get(str(head.get("schema")))
        if kinds is None:
            self.say("line 1.schema", f"expected {' or '.join(SCHEMAS)}, got {shown(head.get('schema'))}")
            return None
        self.known(head, _HEAD, "line 1.")
        self.kind = self.choice(head, "kind", kinds, "line 1.")
        visibility = self.choice(head, "visibility", ("public", "digests"), "line 1.") if "visibility" in head else ""
        self.has_texts = visibility != "digests"
        recorded = self.recorded(self.take(head, "recorded", dict, "line 1.", required=True) or {})
        self.vocabulary = recorded.vocabulary if recorded else _MAX_TOKEN
        prompt = self.prompt(self.take(head, "prompt", dict, "line 1.", required=True), "line 1.prompt")
        bounds = self.bounds(self.take(head, "bounds", dict, "line 1.") or {}, "line 1.bounds.")
        labels = self.texts(head, "labels", "line 1.")
        if len(labels) > MAX_LABELS:
            self.say("line 1.labels", f"{len(labels)} labels, expected at most {MAX_LABELS}")
        sensitivity = self.least_zero(head, "sensitivity", "line 1.", _MAX_SENSITIVITY)
        if sensitivity is not None and sensitivity < _LEAST_SENSITIVITY:
            self.say("line 1.sensitivity", f"expected {_LEAST_SENSITIVITY:g} or more, got {shown(sensitivity)}")
        image = self.image(head)
        if image is not None and len(rest) > MAX_IMAGES:
            self.say(f"line {MAX_IMAGES + 2}", f"{len(rest)} images, expected at most {MAX_IMAGES}")
        if not rest:
            self.say("line 2", "missing: a contract needs at least one line besides the first")
        lines = [self.line(value, number) for number, value in enumerate(rest, 2)]
        if self.problems or recorded is None or prompt is None:
            return None
        return Contract(
            kind=self.kind,
            prompt=prompt,
            recorded=recorded,
            goldens=tuple(one for one in lines if isinstance(one, Golden)),
            expects=tuple(one for one in lines if isinstance(one, Expect)),
            leave_alone=tuple(one for one in lines if isinstance(one, LeaveAlone)),
            bounds=bounds,
            labels=labels,
            visibility=visibility or "public",
            image=image,
            sensitivity=1.0 if sensitivity is None else sensitivity,
            rounding=self.least_zero(head, "rounding", "line 1.", 1.0) or None,
            order=tuple(one.id for one in lines if one is not None),
        )

    def line(self, value: dict[str, Any], number: int) -> Golden | Expect | LeaveAlone | None:
        """One line after the first."""
        if len(self.problems) > PROBLEMS_SHOWN:
            return None
        path = f"line {number}."
        readers: Mapping[str, Callable[..., Any]] = {
            "golden": self.golden, "expect": self.expect, "never": self.expect, "leave_alone": self.leave,
        }  # fmt: skip
        if self.kind == IMAGE:
            readers = {"golden": self.golden}
        found = [key for key in readers if key in value]
        if len(found) != 1:
            what = "the first line again" if "schema" in value else f"expected one of the keys {', '.join(readers)}"
            self.say(f"line {number}", what)
            return None
        name = self.text(value, "id", path, required=True) or ""
        self.check_id(name, path)
        made: Golden | Expect | LeaveAlone | None = readers[found[0]](value, path, name)
        return made

    def check_id(self, name: str, path: str) -> None:
        """Record a name of a line that is malformed or taken."""
        if not _ID.fullmatch(name):
            self.say(f"{path}id", f"expected 1 to 64 of a-z, 0-9 and -, got `{shown(name)}`")
        elif name in self.ids:
            self.say(f"{path}id", f"`{name}` names another line, too")
        self.ids.add(name)

    def golden(self, value: dict[str, Any], path: str, name: str) -> Golden | None:
        """Return a `golden` line."""
        self.known(value, _GOLDEN, path)
        asked: Asked | None = None
        if self.has_texts:
            asked = self.asked(value, "golden", path)
        elif value["golden"] is not None:
            self.wrong(f"{path}golden", "null, as the contract holds digests alone", value["golden"])
        self.check_keys(value, path)
        logits = tuple(self.numbers(value, "logits", path))
        if len(logits) > MAX_LABELS:
            self.say(f"{path}logits", f"{len(logits)} numbers, expected at most {MAX_LABELS}")
        prompt = self.checked(value, "prompt_sha256", parse_digest, path, required=True)
        return Golden(
            id=name,
            asked=asked,
            answer=self.text(value, "answer", path) or "",
            answer_sha256=self.checked(value, "answer_sha256", parse_digest, path),
            tokens=self.tokens(value, path) if "tokens" in value else (),
            prompt_tokens=self.whole(value, "prompt_tokens", path, MAX_PROMPT_TOKENS, required=True) or 0,
            prompt_sha256=prompt or Digest(""),
            loss=self.least_zero(value, "loss", path),
            base_loss=self.least_zero(value, "base_loss", path),
            margin=self.take(value, "margin", float, path),
            **{key: self.odds(value, key, path) for key in _ODDS},
            logits=logits,
            vector=self.packed(value, "vector", path, unpacked),
            seed=self.whole(value, "seed", path, MAX_SEED, least=0),
            latent=self.packed(value, "latent", path, unpacked_latent),
            gap=self.gap(value, path),
        )

    def check_keys(self, value: dict[str, Any], path: str) -> None:
        """Record the keys that a golden of this kind lacks, and those that do not belong to it."""
        wanted: tuple[str, ...] = _WANTED_WITH_TEXTS
        unwanted: tuple[str, ...] = ("answer_sha256",)
        if not self.has_texts:
            wanted, unwanted = ("answer_sha256", *wanted[1:]), ("answer", "tokens", *_ODDS)
        if self.kind in ENCODERS:
            wanted = ("logits",) if self.kind == "classify" else ("vector",)
            unwanted = _OF_ANSWERS
        elif self.kind == IMAGE:
            wanted, unwanted = _OF_IMAGES, (*_OF_ANSWERS, "logits", "vector")
        for key in wanted:
            if key not in value:
                self.say(f"{path}{key}", f"missing; a golden of kind {self.kind} needs it")
        for key in (*unwanted, *(_OF_IMAGES if self.kind != IMAGE else ())):
            if key in value:
                self.say(f"{path}{key}", "does not belong here")

    def packed(
        self, value: dict[str, Any], key: str, path: str, unpack: Callable[[str], Sequence[float]]
    ) -> str | None:
        """Numbers as base64, which `unpack` reads."""
        text = self.text(value, key, path)
        if text is not None and len(text) > MAX_PACKED_CHARACTERS:
            self.say(f"{path}{key}", f"{len(text)} characters, expected at most {MAX_PACKED_CHARACTERS}")
        elif text is not None:
            self.parsed(text, unpack, f"{path}{key}")
        return text

    def odds(self, value: dict[str, Any], key: str, path: str) -> str | None:
        """Return the log-odds of the tokens of an answer, one each; both of adapter and base, or none."""
        if (key in value) != (_ODDS[0] in value or _ODDS[1] in value):
            self.say(f"{path}{key}", f"missing; {' and '.join(_ODDS)} belong together")
        tokens = value.get("tokens")
        count = len(tokens) if isinstance(tokens, list) else 0
        return self.packed(value, key, path, lambda text: unpacked_odds(text, count))

    def leave(self, value: dict[str, Any], path: str, name: str) -> LeaveAlone:
        """Return a `leave_alone` line."""
        self.known(value, _LEAVE, path)
        same = self.take(value, "same", bool, path)
        rise = self.least_zero(value, "rise", path)
        loss = self.least_zero(value, "loss", path)
        if loss is None:
            self.say(f"{path}loss", "missing; it is the base's own")
        return LeaveAlone(
            id=name,
            asked=self.asked(value, "leave_alone", path),
            answer=self.text(value, "answer", path) or "",
            tokens=self.tokens(value, path),
            loss=loss or 0.0,
            rise=DEFAULT_RISE if rise is None else rise,
            same=same is not False,
        )

    def expect(self, value: dict[str, Any], path: str, name: str) -> Expect:
        """Return an `expect` or `never` line."""
        is_never = "never" in value
        return self.demanding(value, "never" if is_never else "expect", path, name, is_never=is_never)

    def demanding(self, value: dict[str, Any], key: str, path: str, name: str, *, is_never: bool) -> Expect:
        """Return a line with demands, whose key `key` is what it asks."""
        self.known(value, (key, "id", *(("not_contains",) if is_never else KEYS)), path)
        demand = self.demand(value, path)
        if not demand.to_json():
            self.say(path.rstrip("."), "demands nothing; add a condition such as `not_contains`")
        return Expect(id=name, asked=self.asked(value, key, path), demand=demand, binds_merges=is_never)

    def demand(self, value: dict[str, Any], path: str) -> Demand:
        """Return the conditions among the keys of a line."""
        lists = {key: self.texts(value, key, path) for key in ("contains", "not_contains", "one_of")}
        for key, texts in lists.items():
            if len(texts) > MAX_CHOICES:
                self.say(f"{path}{key}", f"{len(texts)} texts, expected at most {MAX_CHOICES}")
            elif key in value and not texts:
                self.say(f"{path}{key}", "lists no text")
            elif "" in texts and key != "one_of":
                self.say(f"{path}{key}", "holds an empty text, which is in every answer")
        schema = value.get("json")
        for problem in schema_problems(schema, "json") if "json" in value else ():
            place, _, text = problem.partition(": ")
            self.say(f"{path}{place}", text)
        return Demand(
            equals=self.text(value, "equals", path),
            starts_with=self.text(value, "starts_with", path),
            max_chars=self.whole(value, "max_chars", path, MAX_BYTES, least=0),
            json=schema,
            label=self.text(value, "label", path),
            **lists,
        )

    # ------------------------------------------------------------ parts
    def choice(self, value: dict[str, Any], key: str, choices: tuple[str, ...], path: str) -> str:
        """Return the text, which must be one of `choices`; empty if there is none."""
        text = self.text(value, key, path, required=True)
        if text is not None and text not in choices:
            self.say(f"{path}{key}", f"expected one of {', '.join(choices)}, got `{shown(text)}`")
        return text or ""

    def prompt(self, value: dict[str, Any] | None, path: str) -> PromptForm | None:
        """Return the prompt form; it must suit the kind of model where that is known."""
        if value is None:
            return None
        try:
            form = PromptForm.from_json(value, path)
        except Malformed as error:
            self.problems += [(path, line.strip()) for line in error.message.split("\n")[1:]]
            return None
        if self.kind and (form.form == "text") != (self.kind in ENCODERS):
            self.say(f"{path}.form", f"`{form.form}` does not suit the kind {shown(self.kind)}")
        elif self.kind == IMAGE and form != RAW:
            self.say(path, "a pipeline takes its prompt unchanged: expected the form `raw`, and no other key")
        return form

    def image(self, head: dict[str, Any]) -> ImageSettings | None:
        """Return how the images are drawn; None for another kind, or after a problem."""
        if self.kind != IMAGE:
            if "image" in head:
                self.say("line 1.image", f"does not belong to the kind {shown(self.kind)}")
            return None
        path, value = "line 1.image.", self.take(head, "image", dict, "line 1.", required=True) or {}
        self.known(value, _IMAGE, path)
        sides = {key: self.side(value, key, path) for key in ("width", "height")}
        steps = self.whole(value, "steps", path, MAX_STEPS)
        scheduler = self.checked(value, "scheduler", parse_digest, path, required=True)
        for key in ("width", "height", "steps"):
            if key not in value:
                self.say(f"{path}{key}", "missing")
        parts: dict[str, Any] = {**sides, "steps": steps, "scheduler": scheduler}
        guidance = self.least_zero(value, "guidance", path, MAX_GUIDANCE)
        return None if None in parts.values() else ImageSettings(**parts, guidance=guidance)

    def side(self, value: dict[str, Any], key: str, path: str) -> int | None:
        """Return the width or height of an image in pixels."""
        number = self.whole(value, key, path, MAX_SIDE, least=8)
        if number is not None and number % 8:
            self.say(f"{path}{key}", f"expected a multiple of 8, got {number}")
        return number

    def gap(self, value: dict[str, Any], path: str) -> float | None:
        """Return how far the base's latent is from the recorded one."""
        number: float | None = self.take(value, "gap", float, path)
        if number is not None and not 0 < number <= _MAX_GAP:
            self.say(f"{path}gap", f"expected more than 0, at most {_MAX_GAP:g}, got {shown(number)}")
        return number

    def recorded(self, value: dict[str, Any]) -> Recorded | None:
        """Return the conditions of the recording."""
        path = "line 1.recorded."
        self.known(value, tuple(Recorded.__slots__), path)
        digests = {
            key: self.checked(value, key, parse_digest, path, required=True)
            for key in ("base", "adapter", "tokenizer_sha256")
        }
        texts = {key: self.text(value, key, path, required=True) for key in ("base_dtype", "engine", "torch", "peft")}
        vocabulary = self.whole(value, "vocabulary", path, _MAX_TOKEN, required=True)
        parts: dict[str, Any] = {**digests, **texts, "vocabulary": vocabulary}
        return None if None in parts.values() else Recorded(**parts)

    def bounds(self, value: dict[str, Any], path: str) -> Bounds:
        """Return the bounds, those that are left out at their defaults."""
        self.known(value, NAMES, path)
        found: dict[str, float] = {}
        for name in NAMES:
            number = self.take(value, name, float, path)
            if number is not None and (problem := range_problem(name, number)):
                self.say(f"{path}{name}", f"{problem}, got {shown(number)}")
            elif number is not None:
                found[name] = number
        return Bounds(**found)

    def asked(self, value: dict[str, Any], key: str, path: str) -> Asked:
        """Return a text or a conversation, bounded and not empty."""
        if not isinstance(value.get(key), list):
            text = self.text(value, key, path, required=True)
            if text == "":
                self.say(f"{path}{key}", "asks nothing")
            return text or ""
        turns = []
        for place, turn in self.tables(value, key, path, most=_MAX_TURNS):
            self.known(turn, ("role", "content"), place)
            role = self.choice(turn, "role", _ROLES, place)
            turns.append(Turn(role=role, content=self.text(turn, "content", place, required=True) or ""))
        if not turns:
            self.say(f"{path}{key}", "asks nothing")
        return tuple(turns)

    def tokens(self, value: dict[str, Any], path: str) -> tuple[int, ...]:
        """Return the tokens of an answer, each within the vocabulary."""
        found = self.take(value, "tokens", list, path, required=True) or []
        if not 1 <= len(found) <= MAX_ANSWER_TOKENS:
            self.say(f"{path}tokens", f"{len(found)} tokens, expected 1 to {MAX_ANSWER_TOKENS}")
            return ()
        for at, token in enumerate(found):
            if type(token) is not int or not 0 <= token < self.vocabulary:
                expected = f"a whole number from 0 to {self.vocabulary - 1}"
                self.say(f"{path}tokens[{at}]", f"expected {expected}, got {shown(token)}")
                return ()
        return tuple(found)

    def numbers(self, value: dict[str, Any], key: str, path: str) -> list[float]:
        """Return a list of finite numbers."""
        found = self.take(value, key, list, path) or []
        wrong = next((at for at, one in enumerate(found) if type(one) not in (int, float)), None)
        if wrong is not None:
            self.wrong(f"{path}{key}[{wrong}]", "finite number", found[wrong])
            return []
        return [float(one) for one in found]

    def whole(
        self, value: dict[str, Any], key: str, path: str, most: int, *, least: int = 1, required: bool = False
    ) -> int | None:
        """Return a whole number within limits; None if there is none, or a wrong one."""
        number: int | None = self.take(value, key, int, path, required=required)
        if number is not None and not least <= number <= most:
            self.say(f"{path}{key}", f"expected {least} to {most}, got {shown(number)}")
            return None
        return number

    def least_zero(self, value: dict[str, Any], key: str, path: str, most: float = math.inf) -> float | None:
        """Return a number of at least 0."""
        number: float | None = self.take(value, key, float, path)
        if number is not None and not 0 <= number <= most:
            expected = "0 or more" if most == math.inf else f"0 to {most:g}"
            self.say(f"{path}{key}", f"expected {expected}, got {shown(number)}")
        return number


_CLAIM: Final = re.compile(rb'(?<!\\)"adapterhub/tests/')


def claims_contract(raw: bytes) -> bool:
    """Return whether the bytes claim to be a contract; any other `evals.jsonl` is somebody's own file."""
    return _CLAIM.search(raw[: MAX_BYTES + 1].replace(b"\0", b"")) is not None


def parse_contract(raw: bytes, where: str = CONTRACT_FILE) -> Contract:
    """Read a contract strictly.

    Raises:
        Malformed: every problem with its line and place, such as `line 3: tokens[2]: …`.
        DigestMismatch: the prompt form's chat template is not the one whose digest it states.
        CouldNotTell: it is of a newer version of the format.
    """
    if len(raw) > MAX_BYTES:
        raise _refused(where, [f"more than {MAX_BYTES >> 10} KiB, which no contract needs"])
    lines = raw.split(b"\n")
    if lines.pop() != b"":
        raise _refused(where, [f"line {len(lines) + 1}: the last line does not end"])
    if len(lines) > MAX_LINES:
        raise _refused(where, [f"{len(lines)} lines, expected at most {MAX_LINES}"])
    values, problems = [], []
    for number, line in enumerate(lines, 1):
        try:
            values.append(_value(line))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    schema = values[0].get("schema") if values and not problems else None
    if isinstance(schema, str) and schema.startswith(FAMILY) and schema not in SCHEMAS:
        raise CouldNotTell(
            f"{shown(where, 200)}: the contract has the format {shown(schema)}, written by a newer version",
            hint="upgrade adapterhub to check it",
        )
    if problems:
        raise _refused(where, problems)
    reader = ContractReader()
    contract = reader.contract(values)
    if reader.problems or contract is None:
        raise _refused(where, reader.lines)
    if contract.to_bytes() != raw:
        reason = "written otherwise than the program writes it: six significant digits, and no key with its default"
        raise _refused(where, [reason])
    return contract


def read_contract(path: Path) -> Contract:
    """Return the contract in a file outside of any build.

    Raises:
        NotFound: there is no such file.
        Malformed, CouldNotTell: as `parse_contract`.
    """
    return parse_contract(read_typed(path, MAX_BYTES), str(path))


def contract_in(folder: Path) -> Contract | None:
    """Return the contract in an adapter's folder; None if there is none.

    Raises:
        Malformed, CouldNotTell: as `parse_contract`.
    """
    path = folder / CONTRACT_FILE
    try:
        raw = read_plain(path, MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refused(str(path), [f"cannot be read: {error.strerror}"]) from None
    return parse_contract(raw, str(path)) if claims_contract(raw) else None


def has_contract(folder: Path) -> bool:
    """Return whether a folder holds what says that it is a contract, of this or a newer version; it may be broken."""
    try:
        return claims_contract(read_plain(folder / CONTRACT_FILE, MAX_BYTES))
    except OSError:
        return False


def _refused(where: str, problems: list[str]) -> Malformed:
    title = f"{shown(where, 200)}: not a usable contract"
    return Malformed(problem_list(title, problems), hint="`adapt contract record` writes a sound one")


def _value(line: bytes) -> dict[str, Any]:
    """Return the object on one line, which must be written in the one canonical way.

    Raises:
        ValueError: it is not.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"{len(line)} bytes, expected at most {MAX_LINE_BYTES}")
    value = strict_json(line, limit_bytes=MAX_LINE_BYTES)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {JSON_KINDS.get(type(value), 'something else')}")
    if _is_deeper(value, MAX_DEPTH):
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    try:
        canonical = canonical_json(value)
    except ValueError as error:  # half of a UTF-16 pair, or a whole number that JSON's doubles cannot hold
        raise ValueError(f"has no canonical form: {shown(str(error))}") from None
    if canonical != line:
        raise ValueError("not canonical JSON (RFC 8785): keys sorted, no spaces, numbers in their shortest form")
    return value


def _is_deeper(value: object, levels: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if children is None:
        return False
    return levels == 0 or any(_is_deeper(child, levels - 1) for child in children)


MAX_PLAN_BYTES: Final = 1 << 20
_TOP: Final = ("prompt", "bounds", "image", "golden", "expect", "leave_alone", "never")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An input to ask; `completion` is the answer that the author wants, where one is known; `seed` is for an image."""

    id: str
    asked: Asked
    completion: str | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedImages:
    """How a pipeline is to draw; None: the default of the recording."""

    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The plan of a recording: inputs, demands, `leave_alone` prompts, bounds, and the prompt form if there is one.

    `image` is there if the file has such a table.
    """

    goldens: tuple[Wanted, ...] = ()
    expects: tuple[Expect, ...] = ()
    leave_alone: tuple[LeaveAlone, ...] = ()
    bounds: Bounds = DEFAULT_BOUNDS
    prompt: PromptForm | None = None
    image: WantedImages | None = None


def read_plan(path: Path) -> Plan:
    """Return the plan in a `tests.toml`.

    Raises:
        NotFound: there is no such file.
        Malformed: it is no TOML, or breaks the form; names every problem with its place.
    """
    where = shown(str(path), 200)
    raw = read_typed(path, MAX_PLAN_BYTES)
    if len(raw) > MAX_PLAN_BYTES:
        raise Malformed(f"{where}: expected at most {MAX_PLAN_BYTES >> 20} MB of tests")
    try:
        value = toml_of(raw)
    except ValueError as error:
        raise Malformed(f"{where}: {error}", hint="correct this place; the file is TOML") from None
    reader = _PlanReader()
    plan = reader.plan(value)
    if reader.problems:
        hint = "each `[[golden]]`, `[[expect]]`, `[[leave_alone]]` and `[[never]]` has an `input`"
        raise Malformed(problem_list(f"{where}: not a plan of tests", reader.lines), hint=hint)
    return plan


class _PlanReader(ContractReader):
    kinds: ClassVar[Mapping[type, str]] = TOML_KINDS

    def plan(self, top: dict[str, Any]) -> Plan:
        """Return the plan of the whole file."""
        self.known(top, _TOP)
        prompt = self.prompt(self.take(top, "prompt", dict), "prompt") if "prompt" in top else None
        bounds = self.bounds(self.take(top, "bounds", dict) or {}, "bounds.")
        goldens: list[Wanted] = []
        expects: list[Expect] = []
        leave_alone: list[LeaveAlone] = []
        for path, line in self.tables(top, "golden", most=MAX_LINES):
            self.known(line, ("input", "id", "completion", "seed"), path)
            name = self.name(line, path, f"golden-{len(goldens) + 1}")
            completion = self.text(line, "completion", path)
            seed = self.whole(line, "seed", path, MAX_SEED, least=0)
            goldens.append(Wanted(id=name, asked=self.asked(line, "input", path), completion=completion, seed=seed))
        for key in ("expect", "never"):
            for number, (path, line) in enumerate(self.tables(top, key, most=MAX_LINES), 1):
                name = self.name(line, path, f"{key}-{number}")
                expects.append(self.demanding(line, "input", path, name, is_never=key == "never"))
        for path, line in self.tables(top, "leave_alone", most=MAX_LINES):
            self.known(line, ("input", "id", "rise", "same"), path)
            rise, same = self.least_zero(line, "rise", path), self.take(line, "same", bool, path)
            leave_alone.append(
                LeaveAlone(
                    id=self.name(line, path, f"leave-alone-{len(leave_alone) + 1}"),
                    asked=self.asked(line, "input", path),
                    answer="",
                    tokens=(),
                    loss=0.0,
                    rise=DEFAULT_RISE if rise is None else rise,
                    same=same is not False,
                )
            )
        if not (goldens or expects or leave_alone):
            self.say("(top)", "holds no test; add `[[golden]]` tables")
        return Plan(
            goldens=tuple(goldens),
            expects=tuple(expects),
            leave_alone=tuple(leave_alone),
            bounds=bounds,
            prompt=prompt,
            image=self.wanted_images(self.take(top, "image", dict)),
        )

    def wanted_images(self, value: dict[str, Any] | None) -> WantedImages | None:
        """Return the table `image`."""
        if value is None:
            return None
        self.known(value, ("width", "height", "steps", "guidance"), "image.")
        return WantedImages(
            width=self.side(value, "width", "image."),
            height=self.side(value, "height", "image."),
            steps=self.whole(value, "steps", "image.", MAX_STEPS),
            guidance=self.least_zero(value, "guidance", "image.", MAX_GUIDANCE),
        )

    def name(self, line: dict[str, Any], path: str, default: str) -> str:
        """Return the id of a line: its own, or the default."""
        name = self.text(line, "id", path) or default
        self.check_id(name, path)
        return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The lines of a file of rules; `digest` is their identity, whatever their spaces."""

    nevers: tuple[Expect, ...]
    leave_alone: tuple[LeaveAlone, ...]

    @property
    def digest(self) -> Digest:
        """Of the lines in canonical JSON."""
        lines = [*(line.to_json() for line in self.nevers), *(line.to_json() for line in self.leave_alone)]
        return digest_of(canonical_json(lines))

    def bind(self, contract: Contract) -> bool:
        """Return whether they say anything of such an adapter: they are about texts, which not every adapter writes."""
        return contract.kind in WRITERS

    def added_to(self, contract: Contract) -> Contract:
        """Return the contract with these lines, for a check.

        Their ids begin with `project/`, as none in a contract does.
        """
        nevers = tuple(replace(line, id=f"project/{line.id}") for line in self.nevers)
        leave = tuple(replace(line, id=f"project/{line.id}") for line in self.leave_alone)
        return replace(
            contract, expects=(*contract.expects, *nevers), leave_alone=(*contract.leave_alone, *leave), order=()
        )


def read_rules(path: Path) -> Rules:
    """Read a file of rules.

    Raises:
        NotFound: there is no such file.
        Malformed: every problem with its line.
    """
    raw = read_typed(path, MAX_BYTES, hint="the policy `tests-never` of the project names it")
    reader, lines = ContractReader(), raw.split(b"\n")
    if len(raw) > MAX_BYTES or len(lines) > MAX_LINES:
        reader.say("the file", f"expected at most {MAX_BYTES >> 10} KiB and {MAX_LINES} lines")
        lines = []
    found: list[Any] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = strict_json(line, limit_bytes=MAX_LINE_BYTES)
        except ValueError as error:
            reader.say(f"line {number}", shown(str(error), 200))
            continue
        if not isinstance(value, dict) or not {"never", "leave_alone"} & value.keys():
            reader.say(f"line {number}", "expected an object with the key `never` or `leave_alone`")
            continue
        found.append(reader.line({"id": f"rule-{number}", **value}, number))
    if not found and not reader.problems:
        reader.say("the file", "holds no rule")
    if reader.problems:
        title = f"`{shown(str(path), 200)}`: not usable as the rules of a project"
        raise Malformed(problem_list(title, reader.lines), hint="`docs/reference/contracts.md` shows the lines")
    return Rules(
        nevers=tuple(one for one in found if isinstance(one, Expect)),
        leave_alone=tuple(one for one in found if isinstance(one, LeaveAlone)),
    )
