"""The facts of a manifest against the strict reader: never another answer, however the bytes are bent."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from typing import Any

import rfc8785

from adapterhub.core.errors import MalformedManifest
from adapterhub.formats.manifest import Facts, FactsReader, Manifest
from tests.support.signed_offers import manifest

NAMES = ("name", "version", "base", "method", "rank", "license", "size_bytes", "digest")
ODD = (
    None, True, False, 0, 1, -1, 4, 4.0, 0.5, 1e-5, 1e16, 2**53, -0.0, 10**20, "", "x", "LORA", "1.0", "v1.0", "2.0.0rc1",
    "é", "😀", "\ud800", '","version":"9.0.0"}', '"sha256":"sha256:' + "a" * 64 + '","size_bytes":7', [], [1], ["LORA"],
    {}, {"a": {}}, {"sha256": "sha256:" + "a" * 64, "size_bytes": 7},
)  # fmt: skip


def holders(value: Any) -> list[Any]:
    """Every object and list of a JSON value."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [*([value] if isinstance(value, dict | list) else []), *(h for item in inside for h in holders(item))]


def bent(seeds: random.Random) -> bytes:
    """A manifest with a few changes to its values, its form or its bytes."""
    value = json.loads(manifest(f"{seeds.randrange(3)}.{seeds.randrange(99)}", rank=seeds.choice([None, 4])).to_bytes())
    for entry in value["files"]:
        entry["size_bytes"] = seeds.randrange(10**6)
    for _ in range(seeds.choice([0, 0, 0, 1, 1, 2])):
        holder = seeds.choice(holders(value))
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if keys and seeds.random() < 0.3:
            del holder[seeds.choice(keys)]
        elif isinstance(holder, dict):
            holder[seeds.choice([*keys, "zz", "extra", "license", "card", "metrics", "parents"])] = deepcopy(
                seeds.choice(ODD)
            )
        elif keys:
            holder[seeds.choice(keys)] = deepcopy(seeds.choice([*ODD, *holder]))
    try:
        raw = (
            rfc8785.dumps(value) if seeds.random() < 0.8 else json.dumps(value, sort_keys=seeds.random() < 0.5).encode()
        )
    except ValueError:
        raw = json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
    if seeds.random() < 0.1:
        at = seeds.randrange(len(raw))
        raw = raw[:at] + bytes([seeds.randrange(256)]) + raw[at + seeds.randrange(2) :]
    return raw


def strict(raw: bytes) -> Manifest | None:
    try:
        return Manifest.parse(raw)
    except MalformedManifest:
        return None


def told(one: Facts | Manifest) -> dict[str, object]:
    return {name: getattr(one, name) for name in NAMES}


def test_facts_are_those_of_the_strict_reader(amount):
    seeds, reader, read = random.Random(3), FactsReader(), 0

    for _ in range(amount(2_000, 200_000)):
        raw = bent(seeds)
        facts, whole = reader.read(raw), strict(raw)
        read += facts is not None
        assert facts is None or whole is None or told(facts) == told(whole), raw

    assert read > amount(700, 70_000)


def test_what_a_file_writes_inside_a_text_is_no_fact():
    reader = FactsReader()
    trap = 'x","size_bytes":1},{"sha256":"sha256:' + "a" * 64 + '","size_bytes":999999,"version":"9.9.9"}'
    for version in ("1.0.0", "1.0.1"):
        value = json.loads(manifest(version).to_bytes()) | {"description": trap, "zz": trap}
        raw = rfc8785.dumps(value)

        facts = reader.read(raw)

        assert facts is not None
        assert told(facts) == told(Manifest.parse(raw))
