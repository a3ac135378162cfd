"""Whether an inference engine reads an adapter, and reads it correctly. The rules are one file per engine.

    verdict = judge("vllm@0.32", config, read_header(folder / WEIGHTS_FILE))
    verdict.ok, verdict.reasons, verdict.flags

Engines check little; a part that an engine ignores makes its answers wrong. So a verdict is no in two cases: the
engine refuses the adapter, or it loads it and reads it as another one. `verify` decides whether the numbers are sound
and the base is the right one.

A new engine is a new file here with `NAME`, `VERSIONS`, `SOURCE`, `RULES`, `settings(traits)` and `notes(traits)`. The
file has the name that users type, with an underscore for a dot. Files that begin with an underscore are not engines.
`STEPS`, where an engine needs them, are what its user does before it loads the adapter.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, Final

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.formats.engines._rules import FEATURES, NOTES, SETTINGS, Effect, Feature, Rule
from adapterhub.formats.engines._traits import HEADS, BaseFacts, Traits
from adapterhub.formats.engines._verdict import Reason, Settings, Verdict, as_flags, joined
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.keys import AdapterKeys
from adapterhub.formats.safetensors.file import TensorFile

__all__ = [
    "FEATURES",
    "HEADS",
    "NOTES",
    "SETTINGS",
    "BaseFacts",
    "Effect",
    "Feature",
    "Reason",
    "Rule",
    "Settings",
    "Traits",
    "Verdict",
    "as_flags",
    "described",
    "engine",
    "joined",
    "judge",
    "names",
    "parse_target",
    "together",
]

_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,39}")


def names() -> tuple[str, ...]:
    """The names of all engines, as users type them; imports none."""
    return tuple(m.name.replace("_", ".") for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def parse_target(target: str) -> tuple[str, str | None]:
    """The name and the version in `vllm@0.32` or `llama.cpp`.

    Raises:
        UsageProblem: there is no such engine, or the `@` is not followed by a version.
    """
    name, at, version = target.strip().partition("@")
    name = name.lower()
    if name not in names():
        hint = "write it as `vllm` or `vllm@0.32`"
        raise UsageProblem(f"unknown engine `{shown(name, 40)}`, expected one of {', '.join(names())}", hint=hint)
    if at and not _VERSION.fullmatch(version):
        raise UsageProblem(
            f"`{shown(target, 60)}` has no version after the `@`", hint=f"write `{name}`, or `{name}@` and a version"
        )
    return name, version or None


def engine(name: str) -> ModuleType:
    """The rules of one of `names()`."""
    return importlib.import_module(f"adapterhub.formats.engines.{name.replace('.', '_')}")


def judge(
    target: str,
    config: AdapterConfig,
    weights: TensorFile,
    *,
    base: BaseFacts | None = None,
    keys: AdapterKeys | None = None,
) -> Verdict:
    """What the engine `target` (`vllm@0.32`, `llama.cpp`) does with an adapter of this config and tensor header.

    Reads names and shapes only: microseconds a module. Rules that depend on the base apply as far as `base` is known;
    a note names those that were not judged. `keys`: the tensors as `sort_keys` sorts them, if they are sorted already.

    Raises:
        UsageProblem: no such engine.
        MalformedConfig: E_REGEX when the patterns of the config take too long.
    """
    name, version = parse_target(target)
    rules = engine(name)
    traits = Traits.of(config, weights, base or BaseFacts(), keys)
    found = [(rule, detail) for rule in rules.RULES if (detail := rule.detail(traits))]
    reasons = tuple(
        Reason(feature=rule.feature, effect=rule.effect, says=rule.says, detail=detail, source=rule.source)
        for rule, detail in found
        if rule.effect != NOTES
    )
    notes = [f"{detail}: {rule.says}" for rule, detail in found if rule.effect == NOTES]
    notes += [*rules.notes(traits), *_version_notes(rules, version)]
    settings: Settings = rules.settings(traits)
    return Verdict(
        target=target,
        engine=name,
        version=version,
        reasons=reasons,
        steps=getattr(rules, "STEPS", ()),
        notes=tuple(notes),
        settings=settings,
        flags=as_flags(settings),
    )


def together(verdicts: Iterable[Verdict]) -> tuple[str, ...]:
    """The flags of one server for all adapters that the engine reads correctly."""
    return as_flags(joined(verdict.settings for verdict in verdicts if verdict.ok))


def described() -> Mapping[str, Mapping[str, Any]]:
    """Every engine with its title, versions, source and rules, for the reference page."""
    return {
        name: {
            "title": (rules.__doc__ or "").strip().split("\n")[0],
            "versions": rules.VERSIONS,
            "source": rules.SOURCE,
            "rules": rules.RULES,
        }
        for name in names()
        for rules in (engine(name),)
    }


def _version_notes(rules: ModuleType, version: str | None) -> list[str]:
    known: tuple[str, ...] = rules.VERSIONS
    if version is None or not known or any(version == v or version.startswith(f"{v}.") for v in known):
        return []
    return [f"the rules were checked with {rules.NAME} {' and '.join(known)}; {version} may differ"]
