"""The renames of transformers for a base of which only files are known, from a copy of its table that needs no torch.

`docs/renames.py` writes the copy, `renames.json`, from the installed transformers; a test fails when that has more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from adapterhub.formats.naming.renames import Operation, Rename, Renames

DATA: Final = "renames.json"


class Part(NamedTuple):
    """A model inside a model: its name there, its class and type, and the key of the config that describes it."""

    path: str
    class_name: str
    model_type: str
    key: str = ""


class Table(NamedTuple):
    """What transformers publishes: `renames` and their reverses by class or model type, and the parts of each class.

    `prefixes` are the names of the model without head inside each class. `main` is the class of each model type that
    its checkpoints most often have, `bare` the one without head.
    """

    version: str
    renames: Mapping[str, tuple[tuple[Rename, Rename], ...]]
    parts: Mapping[str, tuple[Part, ...]]
    prefixes: Mapping[str, str]
    main: Mapping[str, str]
    bare: Mapping[str, str]


def _rename(value: Mapping[str, Any]) -> tuple[Rename, Rename]:
    """Return a rename, and its reverse, as `docs/renames.py` writes them."""
    more = {key: value[key] for key in ("has_guard", "is_prefix", "offset") if key in value}
    operations = tuple(Operation(*operation) for operation in value.get("operations", ()))
    forward = Rename(sources=tuple(value["from"]), targets=tuple(value["to"]), operations=operations, **more)
    more["offset"] = -more.get("offset", 0)
    back = value.get("back", ((), ()))
    return forward, Rename(sources=tuple(back[0]), targets=tuple(back[1]), operations=operations, **more)


@cache
def table() -> Table:
    """Return the copy that the package has."""
    value = json.loads(Path(__file__).with_name(DATA).read_text("utf-8"))
    lists = [tuple(map(_rename, transforms)) for transforms in value["lists"]]
    return Table(
        version=value["transformers"],
        renames=MappingProxyType({key: lists[number] for key, number in value["renames"].items()}),
        parts=MappingProxyType({k: tuple(Part(*part) for part in v[1]) for k, v in value["classes"].items()}),
        prefixes=MappingProxyType({k: v[0] for k, v in value["classes"].items()}),
        main=MappingProxyType(value["main"]),
        bare=MappingProxyType(value["bare"]),
    )


def renames_for(model_type: str, config: Mapping[str, Any] | None = None) -> Renames:
    """Return the renames of a base whose files are of that model type.

    `config` is its `config.json`, if that is at hand.
    """
    known, config = table(), config or {}
    listed = config.get("architectures")
    named = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else ""
    class_name = named if named in known.prefixes else known.main.get(model_type, "")
    return _assembled(
        [Part("", class_name, model_type), *_parts(class_name, config)], known.prefixes.get(class_name, "")
    )


def renames_of(types: Mapping[str, str]) -> Renames:
    """Return the renames of a model whose parts (by their names) are of these model types, by their classes."""
    known = table()
    found = Renames()
    for path, model_type in types.items():
        outer = path
        while outer and (outer := outer.rpartition(".")[0]) not in types:
            pass
        if path and known.main.get(types.get(outer, "")):
            continue  # a part of one that is known
        name = known.main.get(model_type, "")
        own = _assembled([Part("", name, model_type), *_parts(name, {})], known.prefixes.get(name, ""))
        found += own.at(path)
    return found


def every_rename() -> Iterator[Renames]:
    """Yield the renames of each model type, for a base whose type is unknown."""
    seen: set[tuple[Rename, ...]] = set()
    for kind in table().main:
        renames = renames_for(kind)
        if renames.transforms not in seen:
            seen.add(renames.transforms)
            yield renames


def _parts(class_name: str, config: Mapping[str, Any]) -> Iterator[Part]:
    """Yield the parts of a class, of which a config may say that they are of other types than usual."""
    known = table()
    others: list[str] = []
    for part in known.parts.get(class_name, ()):
        if part.path.startswith(tuple(f"{path}." for path in others)):
            continue
        inner = config.get(part.key) if part.key else None
        kind = inner.get("model_type") if isinstance(inner, Mapping) else None
        if not isinstance(kind, str) or kind == part.model_type or kind not in known.bare:
            yield part
            continue
        others.append(part.path)
        yield Part(part.path, known.bare[kind], kind)
        for nested in known.parts.get(known.bare[kind], ()):
            yield nested._replace(path=f"{part.path}.{nested.path}", key="")


def _assembled(parts: Sequence[Part], prefix: str) -> Renames:
    """As `get_model_conversion_mapping` of transformers collects them; the first part is the whole model."""
    known = table().renames
    found: list[tuple[Rename, Rename]] = []
    seen: dict[str, list[str]] = {}

    def is_seen(identifier: str, path: str) -> bool:
        return any(not outer or path.startswith(f"{outer}.") for outer in seen.get(identifier, ()))

    for part in parts:
        if is_seen(part.class_name, part.path):
            continue
        own = known.get(part.class_name)
        if own is None and not is_seen(part.model_type, part.path):
            own = known.get(part.model_type)
            if own is not None:
                seen.setdefault(part.model_type, []).append(part.path)
        if own is None:
            continue
        seen.setdefault(part.class_name, []).append(part.path)
        found += [(one.inside(part.path, prefix), back.inside(part.path, prefix)) for one, back in own]
    reverse = tuple(back for one, back in reversed(found) if not one.operations)
    found += known["legacy"]  # read, and never written
    return Renames(tuple(one for one, _ in found), reverse)
