"""HTTP with one server: where the token goes, how far redirects lead, how much is read, and what is said."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from huggingface_hub import constants, get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers

from adapterhub.core.errors import (
    AdapterHubError,
    AdapterNotFound,
    Conflict,
    DigestMismatch,
    NotAllowed,
    RemoteUnreachable,
    SpecError,
)
from adapterhub.distribution.http import wire as _wire
from adapterhub.distribution.http.wire import (
    HttpAnswer,
    HttpError,
    Wire,
    bound_client,
    check_etag,
    file_path,
    git_sha1,
    is_missing,
    unencrypted,
    unusable_proxy,
)

HTTP: Any = sys.modules[HttpError.__module__.partition(".")[0]]
HERE = "https://corp.example"
TOKEN = "hf_of_corp"  # noqa: S105 - of no server


class Net:
    """Answers by URL, and the requests that came."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.came: list[Any] = []

    def __call__(self, request: Any) -> Any:
        self.came.append(request)
        found = self.answers.get(str(request.url), (200, {}, b"body"))
        if isinstance(found, list):
            found = found.pop(0)
        status, headers, body = found
        return HTTP.Response(status, headers=headers, content=iter([body]) if isinstance(body, bytes) else body)

    def leads(self, start: str, target: str, status: int = 302) -> None:
        self.answers[start] = (status, {"location": target}, b"")

    @property
    def tokens(self) -> list[str | None]:
        return [request.headers.get("authorization") for request in self.came]


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    made = Net()
    client = HTTP.Client(transport=HTTP.MockTransport(made))
    monkeypatch.setattr(_wire, "get_session", lambda: client)
    return made


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


def wire(endpoint: str = HERE, token: str | None = TOKEN, **more: Any) -> Wire:
    return Wire(endpoint, token, version="1.2.3", **more)


def refused(what: Callable[[], object], error: type[AdapterHubError] = RemoteUnreachable) -> tuple[str, str]:
    with pytest.raises(error) as told:
        what()
    assert type(told.value) is error
    return told.value.message, told.value.hint


# ------------------------------------------------------------ requests
def test_a_request_carries_token_headers_and_times(net: Net) -> None:
    wire(silence_s=3.0).open(f"{HERE}/a", {"range": "bytes=0-1"})

    [request] = net.came
    assert (request.method, str(request.url)) == ("GET", f"{HERE}/a")
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert (request.headers["accept-encoding"], request.headers["range"]) == ("identity", "bytes=0-1")
    assert "adapterhub/1.2.3" in request.headers["user-agent"]
    assert request.extensions["timeout"] == {"connect": 3.0, "read": 3.0, "write": 3.0, "pool": 3.0}


def test_a_server_hears_from_which_program_a_request_is_as_from_the_client(net: Net, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    for origin in (None, "a/1"):
        monkeypatch.setattr(constants, "HF_HUB_USER_AGENT_ORIGIN", origin)
        wire().open(f"{HERE}/a")
        of_the_client = build_hf_headers(token=False, library_name="adapterhub", library_version="1.2.3")

        assert net.came[-1].headers["user-agent"] == of_the_client["user-agent"]


def test_a_server_to_install_from_needs_little_of_the_client() -> None:
    code = "import sys, adapterhub.distribution.hub as h; h.Hub(endpoint='http://127.0.0.1:9', token='t'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = done.stdout.split()

    assert "huggingface_hub.errors" in imported
    unneeded = (
        "huggingface_hub.hf_api",
        "huggingface_hub._commit_api",
        "yaml",
        "filelock",
        "tqdm",
        "packaging.specifiers",
    )
    assert [name for name in imported if name in unneeded] == []


def test_no_longer_than_usual_is_waited_for_a_connection(net: Net) -> None:
    wire().open(f"{HERE}/a")

    assert net.came[0].extensions["timeout"] == {"connect": 5.0, "read": 30.0, "write": 30.0, "pool": 5.0}
    assert (wire().silence_s, wire(silence_s=7.0).silence_s, wire(silence_s=0.0).silence_s) == (30.0, 7.0, 0.0)
    assert (wire().endpoint, wire().received_bytes) == (HERE, 0)


def test_without_a_token_none_is_sent(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_hub")
    for token in (None, ""):
        wire(token=token).open(f"{HERE}/a")

    assert net.tokens == [None, None]


def test_a_form_is_posted(net: Net) -> None:
    wire().open(f"{HERE}/a", form={"x": ["1", "2"]})

    assert (net.came[0].method, net.came[0].read()) == ("POST", b"x=1&x=2")


def test_what_is_no_address_is_told(net: Net) -> None:
    message, _ = refused(lambda: wire().open("https://corp.example:port/"))

    assert message.startswith(f"{HERE}: `https://corp.example:port/` is not an address: ")
    assert "port" in message.rpartition("is not an address: ")[2]


# ------------------------------------------------------------ redirects
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_every_kind_of_redirect_is_followed(net: Net, status: int) -> None:
    net.leads(f"{HERE}/a", "/b", status)

    assert wire().open(f"{HERE}/a").status == 200
    assert [str(r.url) for r in net.came] == [f"{HERE}/a", f"{HERE}/b"]


@pytest.mark.parametrize("status", [300, 304, 305, 306])
def test_another_status_is_no_redirect(net: Net, status: int) -> None:
    net.leads(f"{HERE}/a", "/b", status)

    assert wire().open(f"{HERE}/a").status == status


def test_a_redirect_without_a_place_is_an_answer(net: Net) -> None:
    net.answers[f"{HERE}/a"] = (302, {}, b"")

    assert wire().open(f"{HERE}/a").status == 302


def test_five_redirects_are_followed_and_six_are_not(net: Net) -> None:
    for n in range(6):
        net.leads(f"{HERE}/{n}", f"/{n + 1}")

    assert wire().open(f"{HERE}/1").status == 200
    assert len(net.came) == 6
    message, _ = refused(lambda: wire().open(f"{HERE}/0"))
    assert message == f"{HERE} redirected more than 5 times"
    assert len(net.came) == 12


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        ("https://corp.example/b", True),
        ("https://CORP.example/b", True),
        ("https://corp.example:443/b", True),
        ("/b", True),
        ("https://corp.example:8443/b", False),
        ("https://corp.example:80/b", False),
        ("https://other.example/b", False),
        ("https://sub.corp.example/b", False),
        ("https://corp.example.evil/b", False),
        ("https://evil/corp.example", False),
    ],
)
def test_the_token_goes_to_the_same_origin_only(net: Net, target: str, kept: bool) -> None:  # noqa: FBT001
    net.leads(f"{HERE}/a", target)

    wire().open(f"{HERE}/a", {"range": "bytes=0-1"})

    assert net.tokens == [f"Bearer {TOKEN}", f"Bearer {TOKEN}" if kept else None]
    assert net.came[1].headers["range"] == "bytes=0-1"
    assert net.came[1].headers["accept-encoding"] == "identity"


def test_the_token_does_not_go_to_another_scheme_of_the_same_host(net: Net) -> None:
    net.leads("http://corp.example/a", "https://corp.example/b")
    net.leads("http://corp.example:443/a", "https://corp.example/b")

    wire("http://corp.example").open("http://corp.example/a")
    wire("http://corp.example:443").open("http://corp.example:443/a")

    assert net.tokens == [f"Bearer {TOKEN}", None] * 2


def test_the_usual_port_of_http_is_the_same_origin_written_out(net: Net) -> None:
    net.leads("http://corp.example/a", "http://corp.example:80/b")

    wire("http://corp.example").open("http://corp.example/a")

    assert net.tokens == [f"Bearer {TOKEN}"] * 2


def test_a_token_that_was_taken_off_does_not_come_back(net: Net) -> None:
    net.leads(f"{HERE}/a", "https://other.example/b")
    net.leads("https://other.example/b", f"{HERE}/c")

    wire().open(f"{HERE}/a", {"Authorization": "Bearer mine"})

    assert net.tokens[1:] == [None, None]


def test_an_encrypted_address_never_leads_to_plain_text(net: Net) -> None:
    net.leads(f"{HERE}/a", "http://corp.example/b")
    net.leads("http://plain.example/a", "http://plain.example/b")

    message, hint = refused(lambda: wire().open(f"{HERE}/a"))

    assert (message, hint) == (
        f"{HERE} redirected from https to `http://corp.example/b`. Nothing was sent there",
        "",
    )
    assert len(net.came) == 1
    assert wire("http://plain.example").open("http://plain.example/a").status == 200
    assert unencrypted("it", "x").message == "it redirected from https to `x`. Nothing was sent there"


def test_a_question_is_not_led_elsewhere(net: Net) -> None:
    net.leads(f"{HERE}/a", "/b", 307)

    message, _ = refused(lambda: wire().open(f"{HERE}/a", form={}))

    assert message == f"{HERE} redirected a POST request"
    assert len(net.came) == 1


@pytest.mark.parametrize(
    "target",
    ["ftp://corp.example/b", "https://:80/b", "https://corp.example:0/b", "https://corp.example:99999/b", "data:x"],
)
def test_a_redirect_to_no_web_address_is_refused(net: Net, target: str) -> None:
    net.leads(f"{HERE}/a", target)

    message, _ = refused(lambda: wire().open(f"{HERE}/a"))

    assert message in {  # the second where the client's library looks at it first
        f"{HERE} led to `{target}`, which is not a web address",
        f"{HERE} led to something that is not a web address",
    }


@pytest.mark.parametrize("target", ["https://é.example/", "https://corp.example/\x01", "https://[::1/"])
def test_a_target_that_no_header_should_hold_is_none(target: str) -> None:
    assert _wire.web_address(f"{HERE}/a", target) == ""


def test_targets_are_joined_to_where_they_stand() -> None:
    assert _wire.web_address(f"{HERE}/a/b", "c?d=1") == f"{HERE}/a/c?d=1"
    assert _wire.web_address(f"{HERE}/a", "//other.example:1/x") == "https://other.example:1/x"


def test_redirects_give_their_connection_back(net: Net) -> None:
    closed: list[str] = []

    class Body(HTTP.SyncByteStream):  # type: ignore[misc,name-defined]
        def __iter__(self) -> Iterator[bytes]:
            yield b""

        def close(self) -> None:
            closed.append("closed")

    def handle(request: Any) -> Any:
        return HTTP.Response(302, headers={"location": "/b"}, stream=Body())

    made = wire()
    made._client = lambda: HTTP.Client(transport=HTTP.MockTransport(handle))  # type: ignore[method-assign]
    refused(lambda: made.open(f"{HERE}/a"))

    assert len(closed) == 6


# ------------------------------------------------------------ packing, status and pause
@pytest.mark.parametrize(
    ("packing", "status", "ok"),
    [
        ("gzip", 200, False),
        ("gzip", 399, False),
        ("gzip", 400, True),
        ("identity", 200, True),
        (" GZip ", 206, False),
        ("", 200, True),
    ],
)
def test_packed_bytes_are_refused_in_good_answers(net: Net, packing: str, status: int, ok: bool) -> None:  # noqa: FBT001
    net.answers[f"{HERE}/a"] = (status, {"content-encoding": packing}, b"")
    if ok:
        assert wire().open(f"{HERE}/a").status == status
        return

    message, _ = refused(lambda: wire().open(f"{HERE}/a"))

    assert message == f"{HERE} sent compressed bytes (`gzip`), expected plain ones"


def test_a_long_name_of_a_packing_is_cut(net: Net) -> None:
    net.answers[f"{HERE}/a"] = (200, {"content-encoding": "x" * 41}, b"")

    assert f"(`{'x' * 39}…`)" in refused(lambda: wire().open(f"{HERE}/a"))[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("7", 7.0), ("30", 30.0), ("31", 30.0), ("", 0.0), ("-1", 0.0), ("1.5", 0.0), ("soon", 0.0), ("²", 0.0)],
)
def test_a_server_may_ask_to_wait_for_a_while(text: str, expected: float) -> None:
    headers = [(b"Retry-After", text.encode("latin-1"))]

    assert HttpAnswer(HTTP.Response(503, headers=headers)).pause_s == expected


def test_no_pause_is_asked_for_by_itself() -> None:
    answer = HttpAnswer(HTTP.Response(200, headers={"X-Name": "Value"}))

    assert (answer.pause_s, answer.packing, answer.headers["x-name"], answer.status) == (0.0, "", "Value", 200)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_waited_out_once(net: Net, pauses: list[float], status: int) -> None:
    net.answers[f"{HERE}/a"] = [(status, {}, b""), (200, {}, b"good")]

    with wire().answering(f"{HERE}/a", {"x-mine": "1"}) as answer:
        assert b"".join(answer.chunks()) == b"good"

    assert (pauses, len(net.came), net.came[1].headers["x-mine"]) == ([0.5], 2, "1")


def test_a_passing_failure_of_a_form_is_asked_again_with_it(net: Net, pauses: list[float]) -> None:
    net.answers[f"{HERE}/a"] = [(503, {"retry-after": "2"}, b""), (200, {}, b"{}")]

    assert wire().json("a", form={"x": "1"}) == {}
    assert ([r.read() for r in net.came], pauses) == ([b"x=1", b"x=1"], [2.0])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 416, 501, 505])
def test_a_lasting_failure_is_told_at_once(net: Net, pauses: list[float], status: int) -> None:
    net.answers[f"{HERE}/a"] = (status, {}, b"")

    with pytest.raises(HfHubHTTPError) as told:
        wire().get("a")

    assert (told.value.response.status_code, len(net.came), pauses) == (status, 1, [])
    assert is_missing(told.value) is (status == 404)


def test_a_failure_that_does_not_pass_is_told_after_two_tries(net: Net, pauses: list[float]) -> None:
    net.answers[f"{HERE}/a"] = (503, {}, b"")

    with pytest.raises(HfHubHTTPError):
        wire().get("a")

    assert (len(net.came), pauses) == (2, [0.5])


def test_only_a_missing_thing_is_missing() -> None:
    assert not is_missing(ValueError("x"))
    assert not is_missing(OSError(404, "x"))


# ------------------------------------------------------------ bodies
def test_a_small_body_is_read_whole_and_counted(net: Net) -> None:
    net.answers[f"{HERE}/p?x=a%20b&x=c"] = (200, {}, iter([b"ab", b"cd"]))
    made = wire()

    assert made.get("p", {"x": ["a b", "c"]}) == b"abcd"
    assert made.received_bytes == 4
    made.get("q")
    assert made.received_bytes == 8
    assert str(net.came[1].url) == f"{HERE}/q"


def test_a_small_body_may_be_just_as_large_as_the_limit(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (_wire.MAX_SMALL_BYTES, _wire.MAX_ERROR_BYTES, _wire.LEAST_BYTES_A_SECOND) == (16777216, 65536, 1024)
    monkeypatch.setattr(_wire, "MAX_SMALL_BYTES", 10)
    net.answers[f"{HERE}/a"] = (200, {}, b"x" * 10)
    net.answers[f"{HERE}/b"] = (200, {}, b"x" * 11)

    assert wire().get("a") == b"x" * 10
    assert refused(lambda: wire().get("b"))[0] == "`b`: more than 10 bytes, expected a small file"


def test_json_is_read_strictly(net: Net) -> None:
    net.answers[f"{HERE}/a?n=1"] = (200, {}, b'{"x": 1}')
    net.answers[f"{HERE}/b"] = (200, {}, b"<html>")
    net.answers[f"{HERE}/c"] = (200, {}, b'{"x": "' + b"y" * (1 << 20) + b'"}')

    assert wire().json("a", {"n": 1}) == {"x": 1}
    assert len(wire().json("c")["x"]) == 1 << 20
    assert refused(lambda: wire().json("b"))[0].startswith(f"`b`: {HERE} sent no valid JSON: not JSON: ")
    assert refused(lambda: wire().json("b", form={}))[0].startswith(f"`b`: {HERE} sent no valid JSON: not JSON: ")
    assert [r.method for r in net.came] == ["GET", "GET", "GET", "POST"]


def test_a_range_is_read_and_no_more(net: Net) -> None:
    made = wire()
    net.answers[f"{HERE}/a"] = (206, {}, b"cdef")
    assert made.get_range("a", 2, 6) == b"cdef"
    assert net.came[0].headers["range"] == "bytes=2-5"
    assert made.received_bytes == 4
    net.answers[f"{HERE}/a"] = (206, {}, b"cdefgh")
    assert made.get_range("a", 2, 6) == b"cdef"
    net.answers[f"{HERE}/a"] = (206, {}, b"cd")
    assert made.get_range("a", 2, 6) == b"cd"


def test_a_server_without_ranges_is_read_up_to_the_end_of_the_range(net: Net) -> None:
    rest = iter([b"ab", b"cd", b"ef", b"never read"])
    net.answers[f"{HERE}/a"] = (200, {}, rest)

    made = wire()
    assert made.get_range("a", 2, 6) == b"cdef"
    assert (made.received_bytes, list(rest)) == (6, [b"never read"])


def test_words_of_a_failure_are_read_up_to_a_bound(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wire, "MAX_ERROR_BYTES", 4)
    rest = iter([b"ab", b"cd", b"never read"])
    answer = HttpAnswer(
        HTTP.Response(
            400, content=rest, request=HTTP.Request("GET", HERE), headers={"content-length": "9", "x-kept": "1"}
        )
    )

    short = answer._with_short_body()

    assert (short.content, list(rest), short.headers["x-kept"], short.status_code) == (
        b"abcd",
        [b"never read"],
        "1",
        400,
    )
    assert short.headers["content-length"] == "4"


def test_packed_words_of_a_failure_are_not_read() -> None:
    rest = iter([b"ab"])
    answer = HttpAnswer(
        HTTP.Response(
            400,
            content=rest,
            request=HTTP.Request("GET", HERE),
            headers={"content-encoding": "gzip", "transfer-encoding": "chunked"},
        )
    )

    short = answer._with_short_body()

    assert (short.content, list(rest)) == (b"", [b"ab"])
    assert not {"content-encoding", "transfer-encoding"} & set(short.headers)


@pytest.mark.parametrize(("status", "bad"), [(399, False), (400, True), (404, True), (200, False)])
def test_a_status_of_400_and_more_is_raised(status: int, bad: bool) -> None:  # noqa: FBT001
    answer = HttpAnswer(HTTP.Response(status, content=iter([b""]), request=HTTP.Request("GET", HERE)))
    if bad:
        with pytest.raises(HfHubHTTPError):
            answer.raise_for_status()
    else:
        answer.raise_for_status()


class Clock:
    """A clock that each piece moves on by its time."""

    def __init__(self, pieces: list[tuple[float, int]]) -> None:
        self.now = 100.0
        self.pieces = pieces
        self.status_code, self.headers = 200, {}  # type: ignore[var-annotated]

    def iter_raw(self) -> Iterator[bytes]:
        for seconds, size in self.pieces:
            self.now += seconds
            yield b"x" * size


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([(2.0, 2048)], None),
        ([(2.0, 2047)], "only 2,047 bytes came in 2 s"),
        ([(1.0, 0), (1.0, 2047)], "only 2,047 bytes came in 2 s"),
        ([(1.9, 1)], None),
        ([(2.0, 5000), (2.0, 2047)], "only 2,047 bytes came in 2 s"),
        ([(2.0, 5000), (1.0, 0)], None),
    ],
)
def test_a_body_that_comes_too_slowly_is_given_up(
    monkeypatch: pytest.MonkeyPatch, pieces: list[tuple[float, int]], words: str | None
) -> None:
    clock = Clock(pieces)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    answer = HttpAnswer(clock, silence_s=2.0)
    if words is None:
        assert sum(map(len, answer.chunks())) == sum(size for _, size in pieces)
        return
    with pytest.raises(TimeoutError) as told:
        list(answer.chunks())
    assert str(told.value) == words


def test_time_of_our_own_between_pieces_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock([(0.5, 1), (0.5, 1)])
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    for _ in HttpAnswer(clock, silence_s=2.0).chunks():
        clock.now += 100.0


# ------------------------------------------------------------ digests in headers
BODY = b"body"
SHA256, SHA1 = hashlib.sha256(BODY).hexdigest(), git_sha1(BODY)
COMMIT = {"x-repo-commit": "c"}


@pytest.mark.parametrize(
    ("headers", "good"),
    [
        ({}, True),
        ({"etag": SHA256}, True),
        ({"etag": f'W/"{SHA256}"'}, True),
        ({"etag": "0" * 64}, False),
        ({"etag": f'W/"{"0" * 64}"'}, False),
        ({"x-linked-etag": f'"{"0" * 64}"', "etag": SHA256}, False),
        ({"x-linked-etag": f'"{SHA256}"', "etag": "0" * 64}, True),
        ({"etag": SHA1} | COMMIT, True),
        ({"etag": "0" * 40} | COMMIT, False),
        ({"etag": "0" * 40}, True),
        ({"etag": "0" * 63}, True),
        ({"etag": "0" * 41} | COMMIT, True),
        ({"etag": "Z" * 64}, True),
        ({"etag": "0" * 63 + "-"}, True),
    ],
)
def test_a_body_is_held_against_the_digest_that_came_with_it(headers: dict[str, str], good: bool) -> None:  # noqa: FBT001
    if good:
        check_etag(BODY, headers, "it")
        return
    with pytest.raises(DigestMismatch) as told:
        check_etag(BODY, headers, "it")
    length = len(headers.get("x-linked-etag", headers["etag"]).removeprefix("W/").strip('"'))
    assert (told.value.where, told.value.expected) == ("it", "0" * length)
    assert told.value.actual == (SHA256 if length == 64 else SHA1)
    assert told.value.hint == "nothing was stored; try again"


def test_a_wrong_body_is_refused_where_it_is_read(net: Net) -> None:
    net.answers[f"{HERE}/a"] = (200, {"etag": "0" * 64}, BODY)

    with pytest.raises(DigestMismatch):
        wire().get("a")


def test_git_names_bytes_by_kind_and_length() -> None:
    assert git_sha1(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert git_sha1(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_the_path_of_a_file_is_quoted() -> None:
    assert file_path("acme/x", "refs/pr/1", "sub/a b.txt") == "acme/x/resolve/refs%2Fpr%2F1/sub/a%20b.txt"


# ------------------------------------------------------------ words
def http_error(status: int, words: str = "no", kind: type[HfHubHTTPError] = HfHubHTTPError) -> HfHubHTTPError:
    return kind("raised", response=HTTP.Response(status, request=HTTP.Request("GET", HERE)), server_message=words)


def plain(error: BaseException, kind: type[AdapterHubError]) -> tuple[str, str]:
    def act() -> None:
        with wire().plainly("it"):
            raise error

    return refused(act, kind)


RIGHT = "`adapt remote login NAME` or ADAPTERHUB_TOKEN gives a token"


@pytest.mark.parametrize("status", [401, 403, 409, 412, 429, 500, 418])
def test_an_answer_becomes_one_plain_line(status: int) -> None:
    kind, hint, end = {
        401: (NotAllowed, f"{RIGHT} with this right", ""),
        403: (NotAllowed, f"{RIGHT} with this right", ""),
        409: (Conflict, "a published release never changes; publish under another version or name", ""),
        412: (Conflict, "someone published at the same time; check, then try again", ""),
        429: (RemoteUnreachable, "", "; wait and try again"),
    }.get(status, (RemoteUnreachable, "", ""))

    told = (f"it: {HERE} answered {status}: no{end}", hint)
    assert plain(http_error(status), kind) == told
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = http_error(status)
    assert plain(wrapped, kind) == told


def test_words_of_a_server_are_cut_at_300_characters() -> None:
    assert plain(http_error(500, "x" * 300), RemoteUnreachable)[0].endswith(": " + "x" * 300)
    assert plain(http_error(500, "x" * 301), RemoteUnreachable)[0].endswith(": " + "x" * 299 + "…")
    assert "answered 500: raised" in plain(http_error(500, ""), RemoteUnreachable)[0]


@pytest.mark.parametrize("kind", [RepositoryNotFoundError, RevisionNotFoundError, RemoteEntryNotFoundError])
def test_what_is_not_there_is_told_as_not_found(kind: type[HfHubHTTPError]) -> None:
    assert plain(http_error(404, "no", kind), AdapterNotFound) == (
        f"it: not found on {HERE}, or private and no token given",
        RIGHT,
    )


def test_other_failures_of_the_client_become_plain_lines() -> None:
    gated = plain(http_error(403, "no", GatedRepoError), NotAllowed)
    assert gated == (f"it: request access at {HERE}", "accept its terms there, then run the command again")
    assert plain(HFValidationError("bad"), SpecError)[0] == "`it`: bad"
    assert plain(OfflineModeIsEnabled("x"), RemoteUnreachable)[0] == (
        "it: the hub client is in offline mode (HF_HUB_OFFLINE)"
    )
    assert plain(RuntimeError("odd"), RemoteUnreachable) == (f"it: {HERE}: odd", "")
    assert plain(ValueError("x" * 161), RemoteUnreachable)[0] == f"it: {HERE}: {'x' * 159}…"


def test_a_server_that_is_not_reached_is_told() -> None:
    hint = "`--offline` uses what is here; `adapt doctor` checks the connection"
    for error, words in ((OSError("down"), "down"), (HTTP.ConnectError("refused"), "refused"), (OSError(), "OSError")):
        wrapped = RuntimeError("wrapped")
        wrapped.__cause__ = error
        for raised in (error, wrapped):
            assert plain(raised, RemoteUnreachable) == (f"it: {HERE} could not be reached: {words}", hint)
    assert plain(OSError("x" * 161), RemoteUnreachable)[0].endswith("x" * 159 + "…")


def test_an_error_of_ours_that_the_client_wraps_is_told_as_it_was() -> None:
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = Conflict("ours", hint="do")

    assert plain(wrapped, Conflict) == ("ours", "do")


def test_a_fault_of_our_own_code_is_no_fault_of_the_server() -> None:
    with pytest.raises(KeyError), wire().plainly("it"):
        raise KeyError("ours")


def test_a_stumble_of_the_client_is_told() -> None:
    code = compile("def act():\n    raise KeyError('theirs')", "client", "exec")
    space: dict[str, Any] = {"__name__": "huggingface_hub.some"}
    exec(code, space)  # noqa: S102 - code that says it is the client's

    def act() -> None:
        with wire().plainly("it"):
            space["act"]()

    assert refused(act)[0] == f"it: {HERE} sent a response that the client cannot read: KeyError('theirs')"


# ------------------------------------------------------------ proxies
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wire, "getproxies", lambda: {"https": "x", "http": "x", "no": "x"})
    told = unusable_proxy(ValueError("http://user:secret@x"))

    assert told.message == (
        "the proxy that the environment names (HTTP_PROXY, HTTPS_PROXY) cannot be used: it is not the address of a proxy. "
        "Nothing was sent"
    )
    assert told.hint == "expected one such as http://proxy.example:3128, or unset it"
    socks = unusable_proxy(ImportError("socksio"))
    assert "cannot be used: SOCKS needs a package that is not installed." in socks.message
    assert socks.hint == "run `pip install socksio`, or unset it"
    monkeypatch.setattr(_wire, "getproxies", dict)
    assert "names (ALL_PROXY) cannot" in unusable_proxy(ValueError()).message


def test_a_client_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> Callable[[], Any]:
        def act() -> Any:
            raise error

        return act

    monkeypatch.setattr(_wire, "get_session", fail(ImportError("socksio")))
    assert "SOCKS needs a package" in refused(lambda: wire().open(f"{HERE}/a"))[0]
    monkeypatch.setattr(_wire, "get_session", fail(Conflict("ours")))
    assert refused(lambda: wire().open(f"{HERE}/a"), Conflict)[0] == "ours"


def test_a_session_that_waits_for_another_time_does_not_close_the_client_that_others_use() -> None:
    bound_client(41)
    client = get_session()
    bound_client(43)

    assert get_session() is client
    assert (client.is_closed, client.timeout.read) == (False, 43)
