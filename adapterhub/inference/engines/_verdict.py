"""The verdict of an engine on an adapter: yes or no, the reasons, and the settings that the engine needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Setting = int | bool | str | tuple[str, ...]
Settings = Mapping[str, Setting]
"""Options of a server by their names without leading dashes; a number is the smallest that works."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """A reason for a no: `feature` is a key of `FEATURES`, `detail` its place, `says` what the engine does with it."""

    feature: str
    effect: str
    says: str
    detail: str
    source: str = ""

    @property
    def text(self) -> str:
        """The reason as a sentence."""
        return f"{self.detail}: {self.says}"

    def to_json(self) -> dict[str, Any]:
        """The reason as a JSON value."""
        return {
            "feature": self.feature,
            "effect": self.effect,
            "detail": self.detail,
            "says": self.says,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verdict of one engine on one adapter. `flags` are `settings` as typed."""

    target: str
    engine: str
    version: str | None
    reasons: tuple[Reason, ...]
    notes: tuple[str, ...]
    settings: Settings
    flags: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the engine loads the adapter and reads it as PEFT does."""
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        """The verdict as a JSON value."""
        settings = {key: list(item) if isinstance(item, tuple) else item for key, item in self.settings.items()}
        return {
            "target": self.target,
            "engine": self.engine,
            "version": self.version,
            "ok": self.ok,
            "reasons": [reason.to_json() for reason in self.reasons],
            "notes": list(self.notes),
            "settings": settings,
            "flags": list(self.flags),
        }


def as_flags(settings: Settings) -> tuple[str, ...]:
    """The settings as words of a command line, such as `--max-lora-rank`, `16`; omits options that are false."""
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
    """Settings that work for all adapters: the largest number and all names."""
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
