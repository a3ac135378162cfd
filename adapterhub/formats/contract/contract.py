"""The contract of one build: how to ask it, what it answered, and what its author demands.

The file is JSON Lines in canonical JSON (RFC 8785): the same contract has the same bytes on every machine. The
reference page is `docs/reference/contracts.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from adapterhub.core.digests import Digest, canonical_json, digest_of
from adapterhub.formats.contract.bounds import DEFAULT_BOUNDS, Bounds
from adapterhub.formats.contract.demands import Demand
from adapterhub.formats.prompts.form import PromptForm, Turn

FAMILY: Final = "adapterhub/tests/"
"""What the schema of every contract begins with, whatever its version."""

WRITERS: Final = ("causal", "seq2seq")
ENCODERS: Final = ("classify", "embed")
IMAGE: Final = "image"
"""The kind of a pipeline that draws."""

SCHEMAS: Final[Mapping[str, tuple[str, ...]]] = {f"{FAMILY}1": (*WRITERS, *ENCODERS), f"{FAMILY}2": (IMAGE,)}
"""The kinds of each version: a program that knows version 1 alone says of images that a newer one wrote them."""

DEFAULT_RISE: Final = 0.1
FEWEST_GOLDENS: Final = 4
DEFAULT_GOLDENS: Final = 20
_SIGNIFICANT: Final = 6


Asked = str | tuple[Turn, ...]
"""What an adapter is asked: a text, or the turns of a conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Where a contract was recorded: digests of the base's and the adapter's weights, and the programs."""

    base: Digest
    base_dtype: str
    adapter: Digest
    tokenizer_sha256: Digest
    vocabulary: int
    engine: str
    torch: str
    peft: str

    def to_json(self) -> dict[str, Any]:
        """The JSON value."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """How a pipeline draws every image of a contract; width and height in pixels.

    `guidance` is None where the pipeline has none. `scheduler` is the digest of its class and settings.
    """

    width: int
    height: int
    steps: int
    guidance: float | None = None
    scheduler: Digest

    def to_json(self) -> dict[str, Any]:
        """The JSON value."""
        held = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in held.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """One prompt and what the adapter answered to it.

    `asked` is None where the contract holds digests alone; then `answer_sha256` is there instead of `answer` and
    `tokens`. Losses are in nats per token of `tokens`; `margin` is the least lead of a recorded token over the next
    best. `logits` are a classifier's log-softmax, `vector` is an encoder's, as base64 of int8 numbers and their scale.
    An image has the `seed` of its noise, and numbers of its `latent` (before the VAE) as base64; `gap` is the distance
    of the base's own latent, as a share of the recorded one's length.
    """

    id: str
    asked: Asked | None
    answer: str = ""
    answer_sha256: Digest | None = None
    tokens: tuple[int, ...] = ()
    prompt_tokens: int = 0
    prompt_sha256: Digest
    loss: float | None = None
    base_loss: float | None = None
    margin: float | None = None
    logits: tuple[float, ...] = ()
    vector: str | None = None
    seed: int | None = None
    latent: str | None = None
    gap: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON value of the line."""
        optional = {
            "answer": self.answer or None,
            "answer_sha256": self.answer_sha256,
            "tokens": list(self.tokens) or None,
            "loss": rounded(self.loss),
            "base_loss": rounded(self.base_loss),
            "margin": rounded(self.margin),
            "logits": [rounded(number) for number in self.logits] or None,
            "vector": self.vector,
            "seed": self.seed,
            "latent": self.latent,
            "gap": rounded(self.gap),
        }
        line = {"golden": asked_json(self.asked), "id": self.id}
        line |= {"prompt_tokens": self.prompt_tokens, "prompt_sha256": self.prompt_sha256}
        return line | {key: value for key, value in optional.items() if value is not None}


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
        """The JSON value of the line."""
        line: dict[str, Any] = {"leave_alone": asked_json(self.asked), "id": self.id, "answer": self.answer}
        line |= {"tokens": list(self.tokens), "loss": rounded(self.loss)}
        return (
            line | ({"rise": self.rise} if self.rise != DEFAULT_RISE else {}) | ({} if self.same else {"same": False})
        )


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
        """The JSON value of the line."""
        return {self.kind: asked_json(self.asked), "id": self.id, **self.demand.to_json()}


Line = Golden | Expect | LeaveAlone


@dataclass(frozen=True, kw_only=True)
class Contract:
    """A contract: its prompt form, where it was recorded, and its lines in the order of the file."""

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
    def noun(self) -> str:
        """What its goldens are."""
        return "images" if self.kind == IMAGE else "answers"

    @cached_property
    def digest(self) -> Digest:
        """The identity of the contract: the digest of its file."""
        return digest_of(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The file."""
        schema = next(name for name, kinds in SCHEMAS.items() if self.kind in kinds)
        head: dict[str, Any] = {"schema": schema, "kind": self.kind, "prompt": self.prompt.to_json()}
        head["recorded"] = self.recorded.to_json()
        head |= {"bounds": self.bounds.to_json()} if self.bounds != DEFAULT_BOUNDS else {}
        head |= {"labels": list(self.labels)} if self.labels else {}
        head |= {"image": self.image.to_json()} if self.image is not None else {}
        head |= {"visibility": self.visibility} if self.visibility != "public" else {}
        by_id: dict[str, Any] = {line.id: line.to_json() for line in self.lines}
        ids = [*(one for one in self.order if one in by_id), *(one for one in by_id if one not in self.order)]
        return b"".join(canonical_json(line) + b"\n" for line in (head, *(by_id[one] for one in ids)))

    def for_merges(self) -> Contract:
        """The lines that every merge of the adapter must keep, as a contract: `never` and `leave_alone`."""
        return replace(self, goldens=(), expects=self.nevers, visibility="public", order=())

    def without_texts(self) -> Contract:
        """The contract with digests in place of prompts and answers, for publishing.

        Only goldens stay: the other lines are nothing without their texts.
        """
        goldens = tuple(
            replace(golden, asked=None, answer="", tokens=(), answer_sha256=answer_digest(golden.tokens))
            for golden in self.goldens
        )
        return replace(self, goldens=goldens, expects=(), leave_alone=(), visibility="digests", order=())


def rounded(number: float | None) -> float | None:
    """A number with six significant digits: the same recording gives the same bytes."""
    return None if number is None else float(f"{number:.{_SIGNIFICANT}g}") + 0.0  # no -0


def asked_json(asked: Asked | None) -> Any:  # noqa: ANN401 - a JSON value
    """The JSON value of what is asked."""
    return [dict(turn) for turn in asked] if isinstance(asked, tuple) else asked


def ids_digest(tokens: Sequence[int]) -> Digest:
    """The digest of token ids as little-endian 32-bit integers."""
    return digest_of(b"".join(token.to_bytes(4, "little", signed=True) for token in tokens))


answer_digest = ids_digest
