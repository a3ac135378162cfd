from __future__ import annotations

import json
import stat
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.core.errors import Conflict, Malformed, NotAllowed, NotFound, UsageProblem
from adapterhub.library.remotes import HUB_URL, Remotes, parse_url

OURS = "https://adapters.example.org"


@pytest.fixture
def remotes(tmp_path):
    return Remotes(tmp_path / "home")


def test_the_public_hub_is_always_there(remotes):
    assert [(r.name, r.url, r.namespaces) for r in remotes.all()] == [("hub", HUB_URL, ())]
    assert remotes.get("hub").url == HUB_URL


def test_a_remote_is_found_by_its_name_its_url_and_its_namespace(remotes):
    made = remotes.add("ours", f"{OURS}/", namespaces=["acme", "legal"])

    assert remotes.get("ours") == remotes.get(OURS) == remotes.get(OURS.upper().replace("HTTPS", "https")) == made
    assert remotes.of_namespace("legal") == [made]
    assert remotes.of_namespace("other") == []


def test_an_unknown_url_is_a_remote_without_a_name(remotes):
    assert (remotes.get(OURS).name, remotes.get(OURS).namespaces) == ("", ())


def test_adding_again_changes_namespaces_and_moves_the_default(remotes):
    remotes.add("ours", OURS, namespaces=["acme"], default=True)
    remotes.add("theirs", "https://other.example.org", default=True)
    remotes.add("ours", OURS, namespaces=["acme", "legal"])

    assert [(r.name, r.namespaces, r.is_default) for r in remotes.all()] == [
        ("ours", ("acme", "legal"), False),
        ("theirs", (), True),
        ("hub", (), False),
    ]


def test_a_namespace_belongs_to_one_remote(remotes):
    remotes.add("ours", OURS, namespaces=["acme"])

    with pytest.raises(Conflict, match="`acme` belongs to remote `ours`"):
        remotes.add("theirs", "https://other.example.org", namespaces=["acme"])

    assert [r.name for r in remotes.all()] == ["ours", "hub"]


def test_a_name_keeps_its_url(remotes):
    remotes.add("ours", OURS)

    for name in ("ours", "hub"):
        with pytest.raises(Conflict):
            remotes.add(name, "https://elsewhere.example.org")


def test_a_token_is_kept_for_one_url_in_a_file_of_its_owner(remotes, tmp_path):
    ours = remotes.add("ours", OURS)
    remotes.login(ours, "adp_secret")

    assert remotes.token(OURS) == "adp_secret"
    assert remotes.token(f"{OURS}:8443") is remotes.token("http://adapters.example.org") is None
    assert stat.S_IMODE((tmp_path / "home" / "credentials.json").stat().st_mode) == 0o600
    assert "adp_secret" not in (tmp_path / "home" / "remotes.json").read_text()


def test_a_name_that_is_given_another_url_takes_no_token_along(remotes):
    remotes.login(remotes.add("ours", OURS), "adp_secret")
    remotes.remove("ours")
    moved = remotes.add("ours", "https://elsewhere.example.org")

    assert (remotes.token(moved.url), remotes.token(OURS)) == (None, None)


def test_logout_says_whether_there_was_a_token(remotes):
    ours = remotes.add("ours", OURS)
    remotes.login(ours, "adp_secret")

    assert [remotes.logout(ours), remotes.logout(ours)] == [True, False]
    assert remotes.token(OURS) is None


def test_tokens_that_others_may_read_are_not_used(remotes, tmp_path):
    remotes.login(remotes.add("ours", OURS), "adp_secret")
    (tmp_path / "home" / "credentials.json").chmod(0o644)

    with pytest.raises(NotAllowed, match="others can read"):
        remotes.token(OURS)


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "naïve", "x" * 5000])
def test_what_cannot_be_a_token_is_refused(remotes, token):
    with pytest.raises(UsageProblem) as refusal:
        remotes.login(remotes.get("hub"), token)

    assert not token or token not in refusal.value.message


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host", "http"),
        ("https://", "http"),
        ("adapters.example.org", "http"),
        ("https://user:secret@host", "password"),
        ("https://host/?a=1", "after the path"),
        ("https://host/#x", "after the path"),
        ("https://host:99999", "URL"),
        ("https://host/\nx", "URL"),
        ("https://hóst", "ASCII"),
    ],
)
def test_what_is_no_url_of_a_server_is_refused(url, said):
    with pytest.raises(UsageProblem, match=said):
        parse_url(url)


@given(
    st.sampled_from(["http", "https", "HTTPS"]),
    st.text(string.ascii_letters + string.digits, min_size=1, max_size=20).map("h{}".format),
    st.one_of(st.none(), st.integers(1, 65535)),
    st.sampled_from(["", "/", "/hub", "/hub/"]),
)
def test_a_url_has_one_spelling(scheme, host, port, path):
    url = parse_url(f"{scheme}://{host}{'' if port is None else f':{port}'}{path}")

    assert parse_url(url) == url == parse_url(f"{url}/")
    assert url.partition("://")[2].partition("/")[0] == url.partition("://")[2].partition("/")[0].lower()


@pytest.mark.parametrize("name", ["", "Ours", "a/b", "-x", "a b", "x" * 65])
def test_what_is_no_name_is_refused(remotes, name):
    with pytest.raises(UsageProblem):
        remotes.add(name, OURS)


def test_unknown_names_are_not_found_and_the_hub_stays(remotes):
    for call in (remotes.get, remotes.remove):
        with pytest.raises(NotFound):
            call("nowhere")
    with pytest.raises(NotFound, match="always there"):
        remotes.remove("hub")


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b'{"remotes": 1}', b'{"remotes": [{"name": "a"}]}', b'{"remotes": [{"name": "a", "url": "x"}]}',
     json.dumps({"remotes": [{"name": "a", "url": OURS}] * 2}).encode()],
)  # fmt: skip
def test_a_broken_file_is_named_and_not_overwritten(remotes, tmp_path, content):
    path = tmp_path / "home" / "remotes.json"
    path.parent.mkdir()
    path.write_bytes(content)

    with pytest.raises(Malformed, match=r"remotes\.json"):
        remotes.add("ours", OURS)

    assert path.read_bytes() == content


def test_only_networks_need_encryption(remotes):
    plain = [remotes.get(f"http://{host}").is_plain_text for host in ("localhost:1", "127.0.0.1:1", "[::1]:1")]

    assert plain == [False, False, False]
    assert remotes.get("http://10.0.0.1").is_plain_text
