"""Signed links: only this server makes one, for its time and its purpose, and what it seals only it reads."""

from __future__ import annotations

import base64
import hashlib
from types import SimpleNamespace
from typing import Any

import pytest
from adapterhub_registry.access import tokens
from adapterhub_registry.access.tokens import BadSignature, check, seal, sign, unseal
from cryptography.fernet import Fernet

SECRET, OTHER_SECRET = b"s" * 32, b"t" * 32
NOW = 1_700_000_000.75
CLAIMS = {"purpose": "upload", "repo": 7}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that the server sees; a test sets `now`."""
    clock = SimpleNamespace(now=NOW)
    clock.time = lambda: clock.now
    monkeypatch.setattr(tokens, "time", clock)
    return clock


def box(secret: bytes) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(hashlib.sha256(b"sealed by a registry " + secret).digest()))


def sealed(text: str, secret: bytes = SECRET) -> str:
    """A token for any text, made by the rule that `signing` documents."""
    return box(secret).encrypt(text.encode()).decode().rstrip("=")


def test_a_token_is_the_sealed_json_of_its_claims_in_steps_of_64_characters() -> None:
    token = sign(CLAIMS, SECRET, 60)

    opened = box(SECRET).decrypt(token + "=" * (-len(token) % 4)).decode()
    assert opened == '{"purpose":"upload","repo":7,"exp":1700000060}'.ljust(64)
    assert check(sealed(opened.strip()), SECRET) == CLAIMS | {"exp": 1_700_000_060}


def test_neither_text_nor_length_of_a_token_tells_a_number() -> None:
    tokens = [sign(CLAIMS | {"repo": number}, SECRET, 60) for number in (7, 70_000)]

    assert len({len(token) for token in tokens}) == 1
    assert not any(b"repo" in base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)) for token in tokens)


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


def changed(token: str) -> dict[str, str]:
    other = "B" if token[-1:] == "A" else "A"
    return {
        "other first character": f"h{token[1:]}",
        "other character in the middle": f"{token[:60]}{'A' if token[60:61] != 'A' else 'B'}{token[61:]}",
        "other last character": f"{token[:-1]}{other}",
        "shorter": token[:-1],
        "longer": f"{token}A",
        "padding": f"{token}=",
        "a character that base64 leaves out": f"{token[:50]}!{token[50:]}",
        "a space": f"{token} ",
        "of another secret": sign(CLAIMS, OTHER_SECRET, 60),
        "no JSON": sealed("[7"),
        "letters beyond ASCII": f"é{token}",
        "empty": "",
    }


@pytest.mark.parametrize("change", changed("a"))
def test_a_changed_token_is_refused(change: str) -> None:
    token = changed(sign(CLAIMS, SECRET, 60))[change]

    with pytest.raises(BadSignature, match="signature is not valid"):
        check(token, SECRET)


def test_a_token_of_4096_characters_is_read_and_a_longer_one_is_not() -> None:
    start = len('{"x":"","exp":1700000060}')
    longest, longer = (sign({"x": "y" * (size - start)}, SECRET, 60) for size in (2944, 3008))

    assert len(longest) <= 4096 < len(longer)
    assert len(check(longest, SECRET)["x"]) == 2944 - start
    with pytest.raises(BadSignature, match="signature is not valid"):
        check(longer, SECRET)


@pytest.mark.parametrize("text", ["", "page 2", "é \U0010ffff"])
def test_a_sealed_text_is_read_with_its_secret_only(text: str) -> None:
    made = seal(text, SECRET)

    assert unseal(made, SECRET) == text
    assert box(SECRET).decrypt(made).decode() == text
    with pytest.raises(BadSignature, match="does not come from this server"):
        unseal(made, OTHER_SECRET)


def test_what_was_not_sealed_here_is_refused() -> None:
    made = seal("page 2", SECRET)
    bad = [
        "",
        "é",
        "\udcff",
        made[:-5],
        f"{made[:20]}{'A' if made[20] != 'A' else 'B'}{made[21:]}",
        box(SECRET).encrypt(b"\xff").decode(),
    ]

    for text in bad:
        with pytest.raises(BadSignature, match="does not come from this server"):
            unseal(text, SECRET)
