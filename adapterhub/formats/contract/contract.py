"""The contract of one build: its prompts and their form, the recorded answers, and what its author demands.

The file is JSON Lines in canonical JSON (RFC 8785): the same contract has the same bytes on every machine. The
reference page is `docs/reference/contracts.md`.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Final

from adapterhub.core.digests import Digest, Json, canonical_json, digest_of, strict_json
from adapterhub.core.errors import shown
from adapterhub.formats.contract.standards import DEFAULT_BOUNDS, Bounds
from adapterhub.formats.prompts.form import PromptForm, Turn

MAX_VECTOR: Final = 4096
MAX_LATENT: Final = 1024
_STEPS: Final = 127
_SCALE_BYTES: Final = 4


def packed(vector: Sequence[float]) -> str:
    """Return a vector as base64 of a scale (float32) and one int8 for each number."""
    scale = max((abs(number) for number in vector), default=0.0) / _STEPS or 1.0
    return base64.b64encode(struct.pack("<f", scale) + bytes(round(n / scale) & 0xFF for n in vector)).decode()


def unpacked(text: str) -> list[float]:
    """Return the vector that `packed` wrote.

    Raises:
        ValueError: the text does not hold such a vector.
    """
    raw = base64.b64decode(text, validate=True)
    if not _SCALE_BYTES < len(raw) <= _SCALE_BYTES + MAX_VECTOR:
        raise ValueError("no vector of 1 to 4096 numbers")
    (scale,) = struct.unpack("<f", raw[:_SCALE_BYTES])
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError("a scale is a number above 0")
    return [scale * number for number in struct.unpack(f"<{len(raw) - _SCALE_BYTES}b", raw[_SCALE_BYTES:])]


def packed_latent(numbers: Sequence[float]) -> str:
    """Return a latent as base64 of half-precision numbers, little-endian: within 0.05 % of each.

    Raises:
        OverflowError: a number is beyond half precision.
    """
    return base64.b64encode(struct.pack(f"<{len(numbers)}e", *numbers)).decode()


def unpacked_latent(text: str) -> list[float]:
    """Return the latent that `packed_latent` wrote.

    Raises:
        ValueError: the text does not hold such a latent, or is zero everywhere.
    """
    raw = base64.b64decode(text, validate=True)
    if not 0 < len(raw) <= 2 * MAX_LATENT or len(raw) % 2:
        raise ValueError(f"no latent of 1 to {MAX_LATENT} numbers in half precision")
    numbers = list(struct.unpack(f"<{len(raw) // 2}e", raw))
    if not all(map(math.isfinite, numbers)) or not any(numbers):
        raise ValueError("expected finite numbers, and one other than 0")
    return numbers


MOST_ODDS: Final = 1000.0
"""Nats that a log-odds may have, above 0 or below; others are recorded as this."""


def packed_odds(numbers: Sequence[float]) -> str:
    """Return the log-odds of tokens as base64 of half-precision numbers, little-endian: within 0.05 % of each."""
    held = [max(-MOST_ODDS, min(MOST_ODDS, number)) for number in numbers]
    return base64.b64encode(struct.pack(f"<{len(held)}e", *held)).decode()


def unpacked_odds(text: str, count: int) -> list[float]:
    """Return the log-odds of `count` tokens that `packed_odds` wrote.

    Raises:
        ValueError: the text does not hold log-odds, or those of another number of tokens.
    """
    raw = base64.b64decode(text, validate=True)
    if len(raw) != 2 * count:
        raise ValueError(f"expected {count} numbers in half precision, one for each token")
    numbers = list(struct.unpack(f"<{count}e", raw))
    if not all(abs(number) <= MOST_ODDS for number in numbers):
        raise ValueError(f"expected numbers from {-MOST_ODDS:g} to {MOST_ODDS:g}")
    return numbers


MAX_CHOICES: Final = 256
"""Entries of a list of texts, an `enum`, or the `properties` of one object."""

SCHEMA_KEYS: Final = ("type", "required", "properties", "items", "enum", "const", "minimum", "maximum")
TYPES: Final[Mapping[str, type | tuple[type, ...]]] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
    "number": (int, float),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Conditions on one answer; those that are None or empty demand nothing.

    `json` is True for any JSON text, or a schema of `SCHEMA_KEYS`. `label` is the label that a classifier must give.
    """

    equals: str | None = None
    contains: tuple[str, ...] = ()
    not_contains: tuple[str, ...] = ()
    starts_with: str | None = None
    one_of: tuple[str, ...] = ()
    max_chars: int | None = None
    json: Json = None
    label: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the keys that demand something."""
        return _told(self)

    def problem(self, text: str, label: str | None = None) -> str:
        """Return why an answer does not meet the demand, in a few words; empty if it does."""
        for check in (_text_problem, _json_problem):
            if found := check(self, text):
                return found
        if self.label is not None and label != self.label:
            return f"the label is `{shown(label or 'none')}`, not `{shown(self.label)}`"
        return ""


KEYS: Final = ("equals", "contains", "not_contains", "starts_with", "one_of", "max_chars", "json", "label")


def _text_problem(demand: Demand, text: str) -> str:
    if demand.equals is not None and text != demand.equals:
        return f"is not `{shown(demand.equals)}`"
    if missing := next((part for part in demand.contains if part not in text), None):
        return f"does not contain `{shown(missing)}`"
    if found := next((part for part in demand.not_contains if part in text), None):
        return f"contains `{shown(found)}`"
    if demand.starts_with is not None and not text.startswith(demand.starts_with):
        return f"does not start with `{shown(demand.starts_with)}`"
    if demand.one_of and text not in demand.one_of:
        return f"is none of the {len(demand.one_of)} allowed answers"
    if demand.max_chars is not None and len(text) > demand.max_chars:
        return f"has {len(text)} characters, at most {demand.max_chars} are allowed"
    return ""


def _json_problem(demand: Demand, text: str) -> str:
    if demand.json is None:
        return ""
    try:
        value = strict_json(text.strip().encode("utf-8", "surrogatepass"))
    except ValueError as error:
        return f"is not JSON: {shown(str(error))}"
    return "" if demand.json is True else _mismatch(demand.json, value, "it")


def _mismatch(schema: Mapping[str, Any], value: Json, place: str) -> str:
    """Return the first place where `value` does not fit the schema; both are shallow."""
    return _value_mismatch(schema, value, place) or _inner_mismatch(schema, value, place)


def _value_mismatch(schema: Mapping[str, Any], value: Json, place: str) -> str:
    kind = schema.get("type")
    if kind is not None and not _is_kind(value, kind):
        return f"{place} is not of type {kind}"
    if "const" in schema and not _equal(schema["const"], value):
        return f"{place} is not the constant of the schema"
    if "enum" in schema and not any(_equal(one, value) for one in schema["enum"]):
        return f"{place} is not one of the values of the schema"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if "minimum" in schema and value < schema["minimum"]:
            return f"{place} is below {schema['minimum']}"
        if "maximum" in schema and value > schema["maximum"]:
            return f"{place} is above {schema['maximum']}"
    return ""


def _inner_mismatch(schema: Mapping[str, Any], value: Json, place: str) -> str:
    if isinstance(value, dict):
        if (lost := next((key for key in schema.get("required", ()) if key not in value), None)) is not None:
            return f"{place} has no `{shown(lost)}`"
        for key, inner in schema.get("properties", {}).items():
            if key in value and (found := _mismatch(inner, value[key], f"`{shown(key)}`")):
                return found
    if isinstance(value, list) and "items" in schema:
        return next(filter(None, (_mismatch(schema["items"], one, f"an item of {place}") for one in value)), "")
    return ""


def _is_kind(value: Json, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, TYPES[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())


def _equal(one: Json, other: Json) -> bool:
    """Equality as JSON has it: True is not 1."""
    try:
        return canonical_json(one) == canonical_json(other)
    except ValueError:  # a number that JSON's doubles cannot hold
        return False


def schema_problems(schema: Json, place: str) -> Sequence[str]:
    """Return the faults of a schema of a `json` demand, each with its place."""
    if schema is True:
        return []
    if not isinstance(schema, dict):
        return [f"{place}: expected true or an object"]
    problems = [f"{place}.{shown(key)}: no such key; there are {', '.join(SCHEMA_KEYS)}"
                for key in schema if key not in SCHEMA_KEYS][:3]  # fmt: skip
    if "type" in schema and not (isinstance(schema["type"], str) and schema["type"] in TYPES):
        problems.append(f"{place}.type: expected one of {', '.join(TYPES)}")
    required = schema.get("required", [])
    if not isinstance(required, list) or len(required) > MAX_CHOICES or any(type(one) is not str for one in required):
        problems.append(f"{place}.required: expected a list of at most {MAX_CHOICES} texts")
    enum = schema.get("enum", [None])
    if not isinstance(enum, list) or not 0 < len(enum) <= MAX_CHOICES:
        problems.append(f"{place}.enum: expected a list of 1 to {MAX_CHOICES} values")
    for bound in ("minimum", "maximum"):
        if bound in schema and type(schema[bound]) not in (int, float):
            problems.append(f"{place}.{bound}: expected a number")
    inner = schema.get("properties", {})
    if not isinstance(inner, dict) or len(inner) > MAX_CHOICES:
        problems.append(f"{place}.properties: expected an object of at most {MAX_CHOICES} keys")
    else:
        for key, one in inner.items():
            problems += schema_problems(one, f"{place}.properties.{shown(key)}") if one is not True else [
                f"{place}.properties.{shown(key)}: expected an object"]  # fmt: skip
    if "items" in schema:
        problems += schema_problems(schema["items"], f"{place}.items") if schema["items"] is not True else [
            f"{place}.items: expected an object"]  # fmt: skip
    return problems


FAMILY: Final = "adapterhub/tests/"
"""What the schema of every contract begins with, whatever its version."""

WRITERS: Final = ("causal", "seq2seq")
ENCODERS: Final = ("classify", "embed")
IMAGE: Final = "image"
"""The kind of a pipeline that draws."""

SCHEMAS: Final[Mapping[str, tuple[str, ...]]] = {
    f"{FAMILY}1": (*WRITERS, *ENCODERS), f"{FAMILY}2": (IMAGE,), f"{FAMILY}3": (*WRITERS, *ENCODERS, IMAGE),
}  # fmt: skip
"""The kinds of each version: a program that knows version 1 alone says of others that a newer one wrote them.

Version 3 has the log-odds of tokens, or a bound on the drift; a contract without them has the version that it had.
"""

DEFAULT_RISE: Final = 0.1
FEWEST_GOLDENS: Final = 4
DEFAULT_GOLDENS: Final = 20
_SIGNIFICANT: Final = 6


Asked = str | tuple[Turn, ...]
"""What an adapter is asked: a text, or the turns of a conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Conditions of a recording: digests of the base's and the adapter's weights, and the programs."""

    base: Digest
    base_dtype: str
    adapter: Digest
    tokenizer_sha256: Digest
    vocabulary: int
    engine: str
    torch: str
    peft: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value."""
        return _told(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """How a pipeline draws every image of a contract; width and height in pixels.

    `guidance` is None if the pipeline has none. `scheduler` is the digest of its class and settings.
    """

    width: int
    height: int
    steps: int
    guidance: float | None = None
    scheduler: Digest

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value."""
        return _told(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """One prompt and what the adapter answered to it.

    `asked` is None if the contract holds only digests; then `answer_sha256` is there instead of `answer` and `tokens`.
    Losses are in nats per token of `tokens`; `margin` is the least lead of a recorded token over the next best. `odds`
    and `base_odds` are the log-odds of each token, log p - log(1 - p), of the adapter and the plain base, as base64 of
    half-precision numbers; older contracts have none. `logits` are a classifier's log-softmax, `vector` is an
    encoder's, as base64 of int8 numbers and their scale. An image has the `seed` of its noise, and numbers of its
    `latent` (before the VAE) as base64; `gap` is the distance of the base's own latent, as a share of the recorded
    one's length.
    """

    id: str
    asked: Asked | None
    answer: str = ""
    answer_sha256: Digest | None = None
    tokens: tuple[int, ...] = ()
    prompt_tokens: int
    prompt_sha256: Digest
    loss: float | None = None
    base_loss: float | None = None
    margin: float | None = None
    odds: str | None = None
    base_odds: str | None = None
    logits: tuple[float, ...] = ()
    vector: str | None = None
    seed: int | None = None
    latent: str | None = None
    gap: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value of the line."""
        return {"golden": asked_json(self.asked), **_told(self, "asked")}


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveAlone:
    """A prompt to which the adapter must keep the base's own answer; answer, tokens and loss are the base's.

    The loss may rise by `rise` nats a token; with `same` the answer must stay, token for token.
    """

    id: str
    asked: Asked
    answer: str
    tokens: tuple[int, ...]
    loss: float
    rise: float = DEFAULT_RISE
    same: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value of the line."""
        rise = {"rise": self.rise} if self.rise != DEFAULT_RISE else {}
        return {"leave_alone": asked_json(self.asked), **_told(self, "asked", "rise"), **rise}


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """A demand on the answer to one prompt. One that `binds_merges` was a `never` line: every merge must meet it."""

    id: str
    asked: Asked
    demand: Demand
    binds_merges: bool = False

    @property
    def kind(self) -> str:
        """The key of the line."""
        return "never" if self.binds_merges else "expect"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value of the line."""
        return {self.kind: asked_json(self.asked), "id": self.id, **self.demand.to_json()}


Line = Golden | Expect | LeaveAlone


@dataclass(frozen=True, kw_only=True)
class Contract:
    """A contract: its prompt form, where it was recorded, and its lines in the order of the file.

    `sensitivity` is the shift of the adapter by rounding to bfloat16, as a multiple of its base's shift; `rounding` is
    that shift as a share of the adapter's effect, without the tenth of the tokens that moved most; None if that is not
    known.
    """

    kind: str
    prompt: PromptForm
    recorded: Recorded
    goldens: tuple[Golden, ...] = ()
    expects: tuple[Expect, ...] = ()
    leave_alone: tuple[LeaveAlone, ...] = ()
    bounds: Bounds = DEFAULT_BOUNDS
    labels: tuple[str, ...] = ()
    visibility: str = "public"
    image: ImageSettings | None = None
    sensitivity: float = 1.0
    rounding: float | None = None
    order: tuple[str, ...] = field(default=(), compare=False)

    @property
    def lines(self) -> tuple[Line, ...]:
        """All lines after the first, by kind."""
        return (*self.goldens, *self.expects, *self.leave_alone)

    @property
    def nevers(self) -> tuple[Expect, ...]:
        """The demands that every merge must meet."""
        return tuple(one for one in self.expects if one.binds_merges)

    @property
    def distinct(self) -> tuple[Golden, ...]:
        """The goldens without those whose prompt comes again, with the same seed."""
        return tuple({(golden.prompt_sha256, golden.seed): golden for golden in reversed(self.goldens)}.values())[::-1]

    @property
    def has_odds(self) -> bool:
        """Whether the drift of an adapter that writes can be measured."""
        return any(golden.odds is not None for golden in self.goldens)

    @property
    def noun(self) -> str:
        """Noun for its goldens."""
        return "images" if self.kind == IMAGE else "answers"

    @cached_property
    def digest(self) -> Digest:
        """The identity of the contract: the digest of its file."""
        return digest_of(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the file."""
        is_third = (
            self.has_odds
            or self.bounds.drift != DEFAULT_BOUNDS.drift
            or self.sensitivity != 1
            or self.rounding is not None
        )
        schema = f"{FAMILY}{3 if is_third else 2 if self.kind == IMAGE else 1}"
        head: dict[str, Any] = {"schema": schema, "kind": self.kind, "prompt": self.prompt.to_json()}
        head["recorded"] = self.recorded.to_json()
        head |= {"bounds": self.bounds.to_json()} if self.bounds != DEFAULT_BOUNDS else {}
        head |= {"labels": list(self.labels)} if self.labels else {}
        head |= {"image": self.image.to_json()} if self.image is not None else {}
        head |= {"sensitivity": self.sensitivity} if self.sensitivity != 1 else {}
        head |= {"rounding": self.rounding} if self.rounding is not None else {}
        head |= {"visibility": self.visibility} if self.visibility != "public" else {}
        by_id: dict[str, Any] = {line.id: line.to_json() for line in self.lines}
        ids = [*(one for one in self.order if one in by_id), *(one for one in by_id if one not in self.order)]
        return b"".join(canonical_json(line) + b"\n" for line in (head, *(by_id[one] for one in ids)))

    def for_merges(self) -> Contract:
        """Return the lines that every merge of the adapter must keep, as a contract: `never` and `leave_alone`."""
        return replace(
            self, goldens=(), expects=self.nevers, visibility="public", sensitivity=1.0, rounding=None, order=()
        )

    def without_texts(self) -> Contract:
        """Return the contract with digests in place of prompts and answers, for publishing.

        Only goldens stay: the other lines are nothing without their texts.
        """
        goldens = tuple(
            replace(
                golden,
                asked=None,
                answer="",
                tokens=(),
                answer_sha256=ids_digest(golden.tokens),
                odds=None,
                base_odds=None,
            )
            for golden in self.goldens
        )
        return replace(
            self,
            goldens=goldens,
            expects=(),
            leave_alone=(),
            visibility="digests",
            sensitivity=1.0,
            rounding=None,
            order=(),
        )


def rounded(number: float | None) -> float | None:
    """Return a number with six significant digits: the same recording gives the same bytes."""
    return None if number is None else float(f"{number:.{_SIGNIFICANT}g}") + 0.0  # no -0


def _told(value: Any, *but: str) -> dict[str, Any]:
    """Return the fields that differ from their defaults as JSON, numbers with six significant digits."""
    held = {one.name: getattr(value, one.name) for one in fields(value) if one.name not in but}
    defaults = {one.name: one.default for one in fields(value)}
    return {name: _six_digits(found) for name, found in held.items() if found != defaults[name]}


def _six_digits(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_six_digits(one) for one in value]
    return rounded(value) if isinstance(value, float) else value


def asked_json(asked: Asked | None) -> Any:
    """Return the JSON value of a prompt."""
    return [dict(turn) for turn in asked] if isinstance(asked, tuple) else asked


def ids_digest(tokens: Sequence[int]) -> Digest:
    """Return the digest of token ids as little-endian 32-bit integers."""
    return digest_of(b"".join(token.to_bytes(4, "little", signed=True) for token in tokens))


_KINDS: Final = {
    "an access key": re.compile(
        r"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,80}|hf_[A-Za-z0-9]{30,60}|sk-[A-Za-z0-9_-]{20,100})\b"
    ),
    "a private key": re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----"),
    "a mail address": re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}\.[A-Za-z0-9.-]{1,63}\b"),
    "a phone number": re.compile(r"(?<!\d)\+\d[\d ()/-]{7,18}\d(?!\d)"),
}
_CARD: Final = re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)")


def private_texts(contract: Contract) -> list[str]:
    """Each line that looks private, as `golden-3: a mail address`; the text itself is not repeated."""
    found = []
    for line in contract.lines:
        text = "\n".join((*_texts(line.asked), getattr(line, "answer", "")))
        kinds = [kind for kind, pattern in _KINDS.items() if pattern.search(text)]
        if any(_is_card(match[0]) for match in _CARD.finditer(text)):
            kinds.append("a card number")
        if kinds:
            found.append(f"{line.id}: {', '.join(kinds)}")
    return found


def _texts(asked: Asked | None) -> Iterator[str]:
    if isinstance(asked, str):
        yield asked
    elif asked is not None:
        yield from (turn["content"] for turn in asked)


def _is_card(text: str) -> bool:
    """Return whether the digits have the check digit of a payment card (Luhn)."""
    digits = [int(c) for c in text if c.isdigit()][::-1]
    return (sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0
