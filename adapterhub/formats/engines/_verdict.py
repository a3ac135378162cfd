"""Whether an engine reads an adapter correctly, why not, and the settings that it needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated

from adapterhub.formats.documented import Documented

Setting = int | bool | str | tuple[str, ...]
Settings = Mapping[str, Setting]
"""Options of a server by name, without leading dashes; a number is a minimum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason(Documented, keys="feature effect detail says source", title="EngineReason"):
    """A reason why an engine does not read an adapter correctly.

    `feature` is a key of `FEATURES`, `detail` is its place in the adapter, `says` what the engine does.
    """

    feature: Annotated[str, "key of the feature; [engines](engines.md#the-rules) lists the features"]
    effect: Annotated[str, "`refuses`, or `misreads`: loads it and answers as a different adapter"]
    says: Annotated[str, "what the engine does with it"]
    detail: Annotated[str, "where the adapter has the feature"]
    source: Annotated[str, "place in the engine's source; may be empty"] = ""

    @property
    def text(self) -> str:
        """One sentence."""
        return f"{self.detail}: {self.says}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(Documented, keys="target engine version ok reasons notes settings flags", title="EngineVerdict"):
    """The verdict of one engine on one adapter. `flags` are `settings` as words of a command line.

    `steps` are what somebody who starts the engine by hand does first. `adapt serve` does it itself.
    """

    target: Annotated[str, "as given, such as `vllm@0.32`"]
    engine: str
    version: Annotated[str | None, "as given; null: none was given"]
    reasons: tuple[Reason, ...]
    steps: tuple[str, ...]
    notes: Annotated[tuple[str, ...], "what was not judged, and what is worth knowing"]
    settings: Annotated[Settings, "options that a server needs, by name; a number is a minimum"] = field(hash=False)
    flags: Annotated[tuple[str, ...], "`settings` as words of a command line"]

    @property
    def ok(self) -> bool:
        """Whether the engine loads the adapter and reads it as PEFT does."""
        return not self.reasons


def as_flags(settings: Settings) -> tuple[str, ...]:
    """The words of a command line, such as `--max-lora-rank`, `16`; options that are false are left out."""
    words: list[str] = []
    for key, item in settings.items():
        if item is False:
            continue
        words.append(f"--{key}")
        if isinstance(item, tuple):
            words += item
        elif item is not True:
            words.append(str(item))
    return tuple(words)


def joined(several: Iterable[Settings]) -> Settings:
    """Settings that suit every adapter: the largest number, every name."""
    all_of: dict[str, Setting] = {}
    for settings in several:
        for key, item in settings.items():
            before = all_of.get(key)
            if isinstance(item, tuple) and isinstance(before, tuple):
                all_of[key] = tuple(sorted({*before, *item}))
            elif isinstance(item, int) and isinstance(before, int) and not isinstance(item, bool):
                all_of[key] = max(before, item)
            else:
                all_of[key] = item
    return MappingProxyType(all_of)
