"""Bundles and statements, on which trust rests: every field that is written and read back, every bound, every refusal's words."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapterhub.core.digests import digest_of
from adapterhub.formats import signature as bundles
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE, BaseRef, Parent
from adapterhub.formats.signature import (
    BUNDLE_TYPE,
    PAYLOAD_TYPE,
    Bundle,
    Identity,
    pre_authentication,
    read_statement,
    signed_files,
    statement_bytes,
)
from tests.support.signed_offers import manifest, release, statement

D1, D2 = digest_of(b"1"), digest_of(b"2")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


# ------------------------------------------------------------ the bundle
def test_a_bundle_is_written_field_by_field() -> None:
    value = json.loads(Bundle(hint=D1, payload=b"what was said", signature=b"by whom").to_bytes())

    assert value == {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": D1[7:]}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(b"what was said").decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": base64.b64encode(b"by whom").decode(), "keyid": ""}],
        },
    }


def test_a_bundle_holds_no_spaces_and_reads_back() -> None:
    made = Bundle(hint=D1, payload=b"x", signature=b"y")

    assert b" " not in made.to_bytes()
    assert Bundle.parse(made.to_bytes()) == made


def test_the_pre_authentication_encoding_counts_both_parts() -> None:
    assert pre_authentication(b"hello world") == b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"


Change = Callable[[dict[str, Any]], object]
SIG = "dsseEnvelope.signatures"
HEX = "expected 64 lower-case hex digits, got"


def at(path: str, item: object = ...) -> Change:
    """Set or delete what lies at a dotted path."""

    def apply(value: Any) -> None:
        *outer, last = path.split(".")
        for name in outer:
            value = value[int(name) if isinstance(value, list) else name]
        if item is ...:
            del value[last]
        else:
            value[last] = item

    return apply


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (at("mediaType", "x"), f"mediaType: expected `{BUNDLE_TYPE}`, got x"),
        (at("mediaType"), f"mediaType: expected `{BUNDLE_TYPE}`, got None"),
        (at("verificationMaterial"), "verificationMaterial: expected an object, got nothing"),
        (at("verificationMaterial", 7), "verificationMaterial: expected an object, got 7"),
        (
            at("verificationMaterial.publicKey"),
            "was not made with a key: verificationMaterial.publicKey is missing",
        ),
        (at("verificationMaterial.publicKey", []), "verificationMaterial.publicKey: expected an object, got []"),
        (
            at("verificationMaterial.publicKey.hint"),
            "verificationMaterial.publicKey.hint: expected a text, got nothing",
        ),
        (
            at("verificationMaterial.publicKey.hint", "A" * 64),
            f"verificationMaterial.publicKey.hint: {HEX} {'A' * 64}",
        ),
        (at("verificationMaterial.publicKey.hint", "a" * 63), f"verificationMaterial.publicKey.hint: {HEX} {'a' * 63}"),
        (at("verificationMaterial.publicKey.hint", "a" * 65), f"verificationMaterial.publicKey.hint: {HEX} {'a' * 65}"),
        (at("dsseEnvelope"), "dsseEnvelope: expected an object, got nothing"),
        (
            at("dsseEnvelope.payloadType", "x"),
            f"dsseEnvelope.payloadType: expected `{PAYLOAD_TYPE}`, got x",
        ),
        (at(SIG), f"{SIG}: expected a list, got nothing"),
        (at(SIG, []), f"{SIG}: expected one signature, got 0"),
        (at(SIG, [{}, {}]), f"{SIG}: expected one signature, got 2"),
        (at(SIG, [1]), f"{SIG}[0]: expected an object"),
        (at(SIG, [{}]), f"{SIG}[0].sig: expected a text, got nothing"),
        (at(SIG, [{"sig": "*"}]), f"{SIG}[0].sig: not base64: "),
        (at("dsseEnvelope.payload", "a*=="), "dsseEnvelope.payload: not base64: "),
        (at("dsseEnvelope.payload", None), "dsseEnvelope.payload: expected a text, got None"),
    ],
)
def test_a_bundle_with_one_wrong_field_is_refused_by_its_path(change: Change, words: str) -> None:
    value = json.loads(Bundle(hint=D1, payload=b"x", signature=b"y").to_bytes())
    change(value)

    with pytest.raises(ValueError, match=r".") as told:
        Bundle.parse(json.dumps(value).encode())

    if words.endswith("base64: "):
        assert str(told.value).startswith(words)
    else:
        assert str(told.value) == words


def test_what_is_no_bundle_at_all_is_refused() -> None:
    for raw, words in ((b"", "is empty"), (b"[]", "the file: expected an object"), (b"x", "not JSON: ")):
        with pytest.raises(ValueError, match=words) as told:
            Bundle.parse(raw)
        assert str(told.value).startswith(words)


def test_a_bundle_may_be_just_as_large_as_the_limit() -> None:
    raw = Bundle(hint=D1, payload=b"x", signature=b"y").to_bytes()
    full = raw + b" " * ((1 << 20) - len(raw))

    assert Bundle.parse(full).payload == b"x"
    with pytest.raises(ValueError, match="1048577 bytes, at most 1048576 are read"):
        Bundle.parse(full + b" ")


def identity(**fields: Any) -> Identity:
    return Identity(**({"name": "legal-qa", "version": "1.0.0"} | fields))


def test_a_statement_is_written_field_by_field() -> None:
    who = identity(namespace="acme", base=D1, rank=4, parents=(D2,))

    value = json.loads(statement_bytes({"b": D2, "a": D1}, who))

    whole = hashlib.sha256(bytes.fromhex(D1[7:] + D2[7:])).hexdigest()
    assert value == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "acme/legal-qa", "digest": {"sha256": whole}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []},
            "resources": [
                {"name": "a", "algorithm": "sha256", "digest": D1[7:]},
                {"name": "b", "algorithm": "sha256", "digest": D2[7:]},
            ],
            "adapter": {
                "name": "legal-qa",
                "version": "1.0.0",
                "base": D1,
                "rank": 4,
                "parents": [D2],
                "namespace": "acme",
            },
        },
    }
    read = read_statement(statement_bytes({"b": D2, "a": D1}, who))
    assert (dict(read.files), read.identity) == ({"a": D1, "b": D2}, who)


def test_an_identity_without_namespace_writes_none_and_reads_back() -> None:
    who = identity()

    assert who.to_json() == {"name": "legal-qa", "version": "1.0.0", "base": None, "rank": None, "parents": []}
    assert read_statement(statement_bytes({"a": D1}, who)).identity == who
    assert (who.full_name, identity(namespace="acme").full_name) == ("legal-qa", "acme/legal-qa")


def test_the_identity_of_a_build_is_that_of_its_manifest() -> None:
    parents = (Parent(digest=D1, spec="a==1", weight=1.0), Parent(digest=None, spec="b==2", weight=1.0))

    made = Identity.of(manifest("2.0.0", rank=8, parents=parents), "acme")

    assert made == Identity(name="legal-qa", version="2.0.0", namespace="acme", rank=8, parents=(D1, "b==2"))
    assert manifest().base == BaseRef()


def test_the_base_of_an_identity_is_the_digest_of_the_weights() -> None:
    base = BaseFingerprint(weights=D1, tensors=D2, structure=D2, samples={})
    made = Identity.of(replace(manifest(), base=BaseRef(fingerprint=base)), None)

    assert (made.base, made.namespace) == (D1, None)


@pytest.mark.parametrize("field", ["namespace", "name", "version", "base", "rank", "parents"])
def test_identities_differ_in_each_field(field: str) -> None:
    one = identity(namespace="acme", base="b", rank=4, parents=("p",))
    value = {"namespace": "beta", "name": "other", "version": "2", "base": "c", "rank": 5, "parents": ()}[field]
    fields = {"namespace": "acme", "base": "b", "rank": 4, "parents": ("p",)} | {field: value}

    assert one.differences(one) == []
    assert len(one.differences(identity(**fields))) == 1


def test_an_open_namespace_on_either_side_differs_from_none() -> None:
    named, bare = identity(namespace="acme"), identity()

    assert (named.differences(bare), bare.differences(named)) == ([], [])


ADAPTER = "statement.predicate.adapter"
RESOURCES = "statement.predicate.resources"
NO_PATH = "which is not a path inside a folder"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (at("_type", "x"), f"statement._type: expected `{bundles.STATEMENT_TYPE}`, got x"),
        (at("predicateType", "x"), f"statement.predicateType: expected `{bundles.PREDICATE_TYPE}`, got x"),
        (at("subject", []), "statement.subject: expected one, got 0"),
        (at("subject", [{}, {}]), "statement.subject: expected one, got 2"),
        (at("subject", [{}]), "statement.subject[0].digest: expected an object, got nothing"),
        (at("subject", [{"digest": {}}]), "statement.subject[0].digest.sha256: expected a text, got nothing"),
        (
            at("subject", [{"digest": {"sha256": "0" * 64}}]),
            "contradicts itself: the digest of its subject is not that of its files",
        ),
        (at("predicate"), "statement.predicate: expected an object, got nothing"),
        (at("predicate.serialization"), "statement.predicate.serialization: expected an object, got nothing"),
        (
            at("predicate.serialization.method", "shards"),
            "statement.predicate.serialization.method: expected `files`, got shards",
        ),
        (
            at("predicate.serialization.hash_type", "blake2"),
            "statement.predicate.serialization.hash_type: expected `sha256`, got blake2",
        ),
        (at("predicate.resources", {}), f"{RESOURCES}: expected a list, got {{}}"),
        (at("predicate.resources", []), f"{RESOURCES}: expected 1 to 1024 files, got 0"),
        (at("predicate.resources", [{}] * 1025), f"{RESOURCES}: expected 1 to 1024 files, got 1025"),
        (at("predicate.resources.1.algorithm", "md5"), f"{RESOURCES}[1].algorithm: expected `sha256`, got md5"),
        (at("predicate.resources.1.name", 5), f"{RESOURCES}[1].name: expected a text, got 5"),
        (at("predicate.resources.1.name", CONFIG_FILE), f"names `{CONFIG_FILE}` twice"),
        (at("predicate.resources.1.digest", "A" * 64), f"{RESOURCES}[1].digest: {HEX} {'A' * 64}"),
        (at("predicate.adapter", []), f"{ADAPTER}: expected an object, got []"),
        (at("predicate.adapter.namespace", 1), f"{ADAPTER}.namespace: expected a text, got 1"),
        (at("predicate.adapter.base", 1), f"{ADAPTER}.base: expected a text, got 1"),
        (at("predicate.adapter.rank", "4"), f"{ADAPTER}.rank: expected an integer, got 4"),
        (at("predicate.adapter.rank", True), f"{ADAPTER}.rank: expected an integer, got True"),
        (at("predicate.adapter.parents"), f"{ADAPTER}.parents: expected a list of texts"),
        (at("predicate.adapter.parents", ["x", 1]), f"{ADAPTER}.parents: expected a list of texts"),
        (at("predicate.adapter.name"), f"{ADAPTER}.name: expected a text, got nothing"),
        (at("predicate.adapter.version", None), f"{ADAPTER}.version: expected a text, got None"),
    ],
)
def test_a_statement_with_one_wrong_field_is_refused_by_its_path(change: Change, words: str) -> None:
    value = statement(release())
    change(value)

    with pytest.raises(ValueError, match=r".") as told:
        read_statement(json.dumps(value).encode())

    assert str(told.value) == words


def with_names(*names: str) -> bytes:
    return statement_bytes(dict.fromkeys(names, D1), identity())


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\\b", "a\nb", "x" * 513])
def test_a_name_that_is_no_path_inside_a_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=NO_PATH) as told:
        read_statement(with_names(name))

    assert str(told.value).startswith("names the file `")


@pytest.mark.parametrize("name", ["a", "a/b", "..a", "a.", ".git", "x" * 512, "é"])
def test_a_plain_name_is_taken(name: str) -> None:
    assert list(read_statement(with_names(name)).files) == [name]


def test_a_statement_may_name_just_as_many_files_as_the_limit() -> None:
    assert len(read_statement(with_names(*(f"{n:04}" for n in range(1024)))).files) == 1024


def test_a_statement_may_be_just_as_large_as_the_limit() -> None:
    raw = with_names("a")
    full = raw + b" " * ((1 << 20) - len(raw))

    assert list(read_statement(full).files) == ["a"]
    with pytest.raises(ValueError, match="at most 1048576 are read"):
        read_statement(full + b" ")
    with pytest.raises(ValueError, match=r"^statement: expected an object$"):
        read_statement(b"[]")


def test_a_signature_covers_files_manifest_and_card() -> None:
    what = manifest()
    names = {CONFIG_FILE: digest_of(CONFIG_FILE.encode()), WEIGHTS_FILE: digest_of(WEIGHTS_FILE.encode())}
    names["adapterhub.json"] = what.digest

    assert signed_files(what) == names
    assert signed_files(what, D1) == names | {"README.md": D1}
