"""Signed links: only this server makes one, for its time and its purpose, and what it seals only it reads."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from types import SimpleNamespace
from typing import Any

import pytest
from adapterhub_registry.access import signing
from adapterhub_registry.access.signing import BadSignature, check, seal, sign, unseal
from cryptography.fernet import Fernet

SECRET, OTHER_SECRET = b"s" * 32, b"t" * 32
NOW = 1_700_000_000.75
CLAIMS = {"purpose": "upload", "repo": 7}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that the server sees; a test sets `now`."""
    clock = SimpleNamespace(now=NOW)
    clock.time = lambda: clock.now
    monkeypatch.setattr(signing, "time", clock)
    return clock


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(raw: bytes, secret: bytes = SECRET) -> str:
    """A token for any bytes, made by the rule that `signing` documents."""
    body = encoded(raw)
    return f"{body}.{encoded(hmac.new(secret, body.encode(), hashlib.sha256).digest())}"


def test_a_token_is_the_compact_json_of_its_claims_and_their_hmac() -> None:
    raw = b'{"purpose":"upload","repo":7,"exp":1700000060}'

    assert sign(CLAIMS, SECRET, 60) == signed(raw)


def test_the_end_of_a_token_is_set_by_the_server_and_not_by_its_claims() -> None:
    assert check(sign({"exp": 9_999_999_999}, SECRET, 10), SECRET) == {"exp": 1_700_000_010}


@pytest.mark.parametrize(("ttl_s", "taken"), [(-1, False), (0, False), (1, True), (3600, True), (3601, False)])
def test_a_token_lives_from_one_second_to_one_hour(ttl_s: int, *, taken: bool) -> None:
    if taken:
        assert check(sign({}, SECRET, ttl_s), SECRET) == {"exp": 1_700_000_000 + ttl_s}
    else:
        with pytest.raises(ValueError, match="lives 1 to 3600 seconds"):
            sign({}, SECRET, ttl_s)


@pytest.mark.parametrize(
    ("now", "good"), [(NOW, True), (1_700_000_059.0, True), (1_700_000_060.0, True), (1_700_000_060.001, False)]
)
def test_a_token_ends_right_after_its_last_second(clock: SimpleNamespace, now: float, *, good: bool) -> None:
    token = sign(CLAIMS, SECRET, 60)
    clock.now = now

    if good:
        assert check(token, SECRET)["repo"] == 7
    else:
        with pytest.raises(BadSignature, match="has expired"):
            check(token, SECRET)


@pytest.mark.parametrize(
    ("claims", "purpose", "good"),
    [
        ({"purpose": "upload"}, "upload", True),
        ({"purpose": "upload"}, None, True),
        ({"purpose": "upload"}, "download", False),
        ({"purpose": "upload"}, "", False),
        ({"purpose": None}, "upload", False),
        ({}, "upload", False),
        ({}, None, True),
    ],
)
def test_a_token_serves_its_own_purpose_only(claims: dict[str, Any], purpose: str | None, *, good: bool) -> None:
    token = sign(claims, SECRET, 60)

    if good:
        assert check(token, SECRET, purpose=purpose) == claims | {"exp": 1_700_000_060}
    else:
        with pytest.raises(BadSignature, match="has another purpose"):
            check(token, SECRET, purpose=purpose)


@pytest.mark.parametrize("length", range(8))
def test_claims_of_every_length_come_back(length: int) -> None:
    claims = {"é~": "ÿ?>" + "x" * length}

    assert check(sign(claims, SECRET, 60), SECRET) == claims | {"exp": 1_700_000_060}


def test_bytes_are_written_in_base64url_without_padding() -> None:
    assert [signing._encode(raw) for raw in (b"\0\0\x17", b"\xfb\xff", b"")] == ["AAAX", "-_8", ""]


def changed(token: str) -> dict[str, str]:
    body, _, mac = token.partition(".")
    later = encoded(json.dumps(CLAIMS | {"exp": 1_800_000_000}, separators=(",", ":")).encode())
    return {
        "other claims": f"{later}.{mac}",
        "other first character of the signature": f"{body}.{'A' if mac[0] != 'A' else 'B'}{mac[1:]}",
        "shorter signature": token[:-1],
        "longer signature": f"{token}A",
        "no signature": f"{body}.",
        "no dot": body + mac,
        "no claims": f".{mac}",
        "padding": f"{token}=",
        "signature first": f"{mac}.{body}",
        "signature of another secret": sign(CLAIMS, OTHER_SECRET, 60),
        "letters beyond ASCII": f"é{token}",
        "a signature beyond ASCII": f"{body}.é",
        "empty": "",
    }


@pytest.mark.parametrize("change", changed("a.b"))
def test_a_changed_token_is_refused(change: str) -> None:
    token = changed(sign(CLAIMS, SECRET, 60))[change]

    with pytest.raises(BadSignature, match="signature is not valid"):
        check(token, SECRET)


def test_a_token_of_4096_characters_is_read_and_a_longer_one_is_not() -> None:
    start = len('{"x":"","exp":1700000060}')
    longest, longer = (sign({"x": "y" * (size - start)}, SECRET, 60) for size in (3039, 3040))

    assert (len(longest), len(longer)) == (4096, 4098)
    assert len(check(longest, SECRET)["x"]) == 3039 - start
    with pytest.raises(BadSignature, match="signature is not valid"):
        check(longer, SECRET)


def box(secret: bytes) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(hashlib.sha256(b"sealed by a registry " + secret).digest()))


@pytest.mark.parametrize("text", ["", "page 2", "é \U0010ffff"])
def test_a_sealed_text_is_read_with_its_secret_only(text: str) -> None:
    sealed = seal(text, SECRET)

    assert unseal(sealed, SECRET) == text
    assert box(SECRET).decrypt(sealed).decode() == text
    with pytest.raises(BadSignature, match="does not come from this server"):
        unseal(sealed, OTHER_SECRET)


def test_what_was_not_sealed_here_is_refused() -> None:
    sealed = seal("page 2", SECRET)
    bad = [
        "",
        "é",
        "\udcff",
        sealed[:-5],
        f"{sealed[:20]}{'A' if sealed[20] != 'A' else 'B'}{sealed[21:]}",
        box(SECRET).encrypt(b"\xff").decode(),
    ]

    for text in bad:
        with pytest.raises(BadSignature, match="does not come from this server"):
            unseal(text, SECRET)
