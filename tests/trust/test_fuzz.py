"""The readers of strangers' files give a verdict or a refusal, whatever they are given. The long form is `fuzz.py`."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.core.errors import AdapterHubError, MalformedConfig, MalformedManifest, MalformedTensorFile
from adapterhub.core.limits import Limits, parse_limits
from adapterhub.formats.manifest import Manifest
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.header import ADAPTER_LIMITS, parse_header_text
from tests import fuzz

pytestmark = pytest.mark.slow

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_adapters_get_a_verdict(seed: int) -> None:
    verdicts = fuzz.run(seed, count=800)

    assert verdicts["failed"] > 500
    assert verdicts["unknown"] + verdicts["ok"] > 10  # or the mutations never get behind the first check


@settings(derandomize=True, max_examples=300)
@given(st.dictionaries(st.sampled_from(fuzz.KEYS), JSON, max_size=6), st.sampled_from(fuzz.PEFT_TYPES))
def test_any_config_is_read_or_refused(values: dict[str, object], peft_type: str) -> None:
    raw = json.dumps({"peft_type": peft_type, "target_modules": ["q"], **values}).encode()

    try:
        config = AdapterConfig.parse(raw, "config")
        config.targets("model.layers.0.q")
        if config.is_lora:
            config.scaling_of("model.layers.0.q")
    except MalformedConfig as refusal:
        fuzz.check_words(refusal.message)


@settings(derandomize=True, max_examples=300)
@given(
    st.text(max_size=200)
    | JSON.map(json.dumps)
    | st.dictionaries(st.text(max_size=9), st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": JSON}))
    .map(json.dumps)
)  # fmt: skip
def test_any_header_is_read_or_refused(text: str) -> None:
    try:
        parse_header_text(text, "file", ADAPTER_LIMITS)
    except MalformedTensorFile as refusal:
        fuzz.check_words(refusal.message)


DIMENSION = st.integers(0, 2**65)


@settings(derandomize=True, max_examples=300)
@given(st.sampled_from(["F32", "BF16", "F4", "X9", "f32"]), st.lists(DIMENSION, max_size=34), DIMENSION, DIMENSION)
def test_the_quick_way_to_an_entry_gives_what_json_gives(dtype: str, shape: list[int], begin: int, stop: int) -> None:
    """With a space in front, the same entry goes the long way."""
    value = {"dtype": dtype, "shape": shape, "data_offsets": [begin, stop]}

    def read(text: str) -> object:
        try:
            return parse_header_text(text, "file", ADAPTER_LIMITS)
        except MalformedTensorFile as refusal:
            return refusal.code, refusal.reason

    quick = json.dumps({"t": value}, separators=(",", ":"))

    assert read(quick) == read(quick.replace('{"dtype', '{ "dtype'))


@pytest.mark.parametrize("number", ["08", "-1", "+1", "1e2", "1.0", "٣", "1_0", " 1"])
def test_a_number_that_json_does_not_have_is_refused_in_an_entry(number: str) -> None:
    text = '{"t":{"dtype":"U8","shape":[' + number + '],"data_offsets":[0,1]}}'

    if number == " 1":
        parse_header_text(text, "file", ADAPTER_LIMITS)
        return
    with pytest.raises(MalformedTensorFile):
        parse_header_text(text, "file", ADAPTER_LIMITS)


@settings(derandomize=True, max_examples=200)
@given(st.dictionaries(st.sampled_from(["name", "version", "rank", "files", "base", "method", "extra", "x"]), JSON))
def test_any_manifest_is_read_or_refused(values: dict[str, object]) -> None:
    base = {"schema": "adapterhub/1", "name": "m", "version": "1.0", "base": {}, "method": [], "files": []}

    try:
        Manifest.parse(json.dumps(base | values).encode())
    except MalformedManifest as refusal:
        fuzz.check_words(refusal.message)


@settings(derandomize=True, max_examples=100)
@given(st.text(max_size=60))
def test_any_text_sets_limits_or_is_refused(text: str) -> None:
    try:
        assert isinstance(parse_limits(text), Limits)
    except AdapterHubError as refusal:
        fuzz.check_words(refusal.message)
