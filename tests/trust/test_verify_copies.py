"""An adapter is checked against a quantised copy of its base by the shapes that the base had before."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from peft import LoraConfig

from adapterhub.core.digests import canonical_json, digest_of
from adapterhub.core.errors import Malformed
from adapterhub.core.specs import parse_name
from adapterhub.formats.base.fingerprint import (
    MANY_TENSORS,
    RANGE,
    RANGES_OF_MANY,
    BaseFingerprint,
    CopyFacts,
    CopyRange,
    fingerprint_tensors,
)
from adapterhub.formats.manifest import LIMIT_BYTES, MOST_VALUES
from adapterhub.formats.safetensors.header import SAMPLES, TensorFacts
from adapterhub.library.intake.description import Description
from tests.support.command_line import Adapt
from tests.support.quantised_copies import float8_copy
from tests.support.tiny_models import llama, save_adapter

TARGETS = LoraConfig(r=2, target_modules=["q_proj", "down_proj"])


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    """A library with a base and its copy in float8."""
    llama().save_pretrained(tmp_path / "source")
    float8_copy(tmp_path / "source", tmp_path / "copy")
    adapt = Adapt(tmp_path)
    for name in ("source", "copy"):
        adapt.library.bases.add(tmp_path / name, name)
    return adapt


def codes(adapt: Adapt, folder: Path, base: str) -> set[str]:
    document = json.loads(adapt("verify", folder, "--base", base, "--json").stdout)
    return {finding["code"] for finding in document[0]["findings"]}


def test_what_fits_the_source_fits_the_copy(adapt: Adapt, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "adapter", llama, TARGETS)

    assert codes(adapt, folder, "copy") == codes(adapt, folder, "source")


def test_what_does_not_fit_the_source_does_not_fit_the_copy(adapt: Adapt, tmp_path: Path) -> None:
    wide = save_adapter(tmp_path / "wide", lambda: llama(hidden_size=64), TARGETS)
    deep = save_adapter(tmp_path / "deep", lambda: llama(num_hidden_layers=3), TARGETS)

    for folder in (wide, deep):
        assert "E_BASE_MISMATCH" in codes(adapt, folder, "copy")
        assert codes(adapt, folder, "copy") == codes(adapt, folder, "source")


def test_an_adapter_of_the_source_is_one_of_the_copy(adapt: Adapt, tmp_path: Path) -> None:
    source = adapt.library.bases.get("source")
    about = Description(name=parse_name("small"), version="1.0.0")
    adapt.library.add(save_adapter(tmp_path / "adapter", llama, TARGETS), about, base=source)

    document = adapt.json("verify", "small", "--base", "copy")

    said = [finding["message"] for finding in document[0]["findings"] if finding["code"] == "N_BASE"]
    assert "14 tensors are quantised" in said[0]


def test_a_copy_counts_the_numbers_of_its_source(adapt: Adapt) -> None:
    source, copy = (adapt.library.bases.get(name) for name in ("source", "copy"))

    assert copy.hints.parameters == source.hints.parameters
    assert [(fact.name, fact.shape) for fact in copy.weights] == [(fact.name, fact.shape) for fact in source.tensors]
    assert copy.has(["model.layers.1.mlp.up_proj"])
    assert not copy.has(["model.layers.2.mlp.up_proj"])


def test_the_record_of_a_copy_is_registered_elsewhere_without_its_weights(adapt: Adapt, tmp_path: Path) -> None:
    record, path = adapt.library.bases.get("copy"), tmp_path / "record.json"
    path.write_bytes(record.exported().to_bytes())
    other = Adapt(tmp_path / "elsewhere").library.bases

    assert other.add_record(path).weights == record.weights

    path.write_bytes(record.exported().to_bytes().replace(b'":48x32:', b'":32x48:'))
    with pytest.raises(Malformed, match="structure"):
        other.add_record(path)


def test_an_adapter_of_a_copy_is_published_with_what_proves_its_base(adapt: Adapt, tmp_path: Path) -> None:
    about = Description(name=parse_name("small"), version="1.0.0")
    folder = save_adapter(tmp_path / "adapter", llama, TARGETS)
    copy = adapt.library.bases.get("copy")
    adapt.library.add(folder, about, base=copy)
    adapt.ok("push", "small", "--to", str(tmp_path / "shared"))
    other = Adapt(tmp_path / "elsewhere")
    other.folder.mkdir()
    other.library.bases.add(tmp_path / "source", "source")

    other.ok("install", "small", "--base", "source", "--from", str(tmp_path / "shared"))

    (there,) = other.library.installed()
    assert there.manifest.base.fingerprint.copy == copy.fingerprint.copy
    assert "ok" in other.ok("verify", "small", "--base", "source")


@pytest.mark.parametrize(("layers", "experts", "most_bytes"), [(32, 0, 100_000), (48, 128, LIMIT_BYTES)])
def test_a_manifest_has_room_for_the_ranges_of_a_large_copy(layers: int, experts: int, most_bytes: int) -> None:
    attention = [f"self_attn.{letter}_proj" for letter in "qkvo"]
    each = [f"experts.{number}." for number in range(experts)] or [""]
    names = [*attention, *(f"mlp.{part}{which}_proj" for part in each for which in ("gate", "up", "down"))]
    weights = [f"model.layers.{layer}.{name}.weight" for layer in range(layers) for name in names]
    keep = SAMPLES if len(weights) < MANY_TENSORS else RANGES_OF_MANY
    noise = random.Random(0).randbytes
    facts = [TensorFacts(name=n, dtype="F8_E4M3", shape=(4096, 4096), sha256="0" * 64, samples=b"") for n in weights]
    ranges = {name: CopyRange("fp8-block", (4096, 11008), noise(keep * RANGE.size)) for name in weights}
    copy = CopyFacts(form="fp8-block", structure=digest_of(b""), ranges=ranges)
    kept = TensorFacts(name="norm", dtype="BF16", shape=(8,), sha256="0" * 64, samples=noise(16))
    fingerprint = fingerprint_tensors([*facts, kept], copy=copy, parts=set(weights))

    written = canonical_json(fingerprint.to_json())

    assert len(written) < most_bytes
    assert len(weights) < MOST_VALUES / 2
    assert BaseFingerprint.from_json(json.loads(written)).copy.ranges == ranges
