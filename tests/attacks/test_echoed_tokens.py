"""A server that puts the request's token into its answers: no output of any command, and no error, holds it."""

from __future__ import annotations

import base64
import json
import os
import re
import string
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapterhub import Library
from adapterhub.core import redaction
from adapterhub.core.errors import NotAllowed, shown
from adapterhub.core.redaction import keep_secret, without_secrets
from adapterhub.core.specs import parse_name
from adapterhub.distribution.oci._image import Credentials, OciWire
from adapterhub.library.intake.description import Description
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

TOKEN = "adpt-Zq9_x+7/Kf-unmistakable~secret"  # noqa: S105 - of no server
Form = Callable[[str], str]

FORMS: dict[str, Form] = {
    "as it is": str,
    "percent-encoded": lambda text: quote(text, safe=""),
    "each character percent-encoded": lambda text: "".join(f"%{ord(one):02X}" for one in text),
    "percent-encoded twice": lambda text: quote(quote(text, safe=""), safe=""),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 for URLs, behind two bytes": lambda text: base64.urlsafe_b64encode(b"x:" + text.encode()).decode(),
    "hex": lambda text: text.encode().hex(),
    "JSON escapes": lambda text: "".join(f"\\u{ord(one):04x}" for one in text),
    "HTML escapes": lambda text: "".join(f"&#{ord(one)};" for one in text),
    "capitals": str.upper,
    "the first half": lambda text: text[: len(text) // 2 + 4],
}
COMMANDS = [
    ("search", "legal", "--remote", "ours"),
    ("install", "acme/x", "--remote", "ours"),
    ("info", "acme/x", "--remote", "ours"),
    ("push", "legal-qa", "--to", "acme/legal-qa", "--remote", "ours"),
    ("yank", "acme/x==1.0.0", "--remote", "ours", "--reason", "bad"),
    ("yank", "acme/x==1.0.0", "--remote", "ours", "--undo"),
    ("alias", "set", "prod", "acme/x==1.0.0", "--remote", "ours"),
    ("alias", "list", "acme/x", "--remote", "ours"),
    ("delete", "acme/x==1.0.0", "--remote", "ours", "--yes"),
    ("pull", "acme/x", "pulled", "--remote", "ours"),
    ("compare", "acme/x", "--remote", "ours"),
    ("doctor", "--remote", "ours"),
    ("registry", "token", "list", "--url", "URL"),
]
ANSWERS = ["401", "403", "404", "409", "500", "location", "no JSON", "JSON"]


class Echo(ThreadingHTTPServer):
    """Answers each request with its own header `Authorization`, in the body and in headers."""

    answer, form, came = "401", FORMS["as it is"], 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        server = self.server
        assert isinstance(server, Echo)
        self.rfile.read(int(self.headers.get("content-length") or 0))
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        server.came += bool(token)
        told = server.form(token)
        body = json.dumps({"error": f"refused Bearer {told} of you", "errors": [{"message": told}], "id": told})
        self.send_response(
            int(server.answer) if server.answer.isdigit() else 302 if server.answer == "location" else 200
        )
        for name in ("x-error-message", "x-request-id", "www-authenticate"):
            self.send_header(name, f"refused {told}")
        if server.answer == "location":
            self.send_header("location", f"ftp://{told}/{told}")
        raw = f"no JSON: {told}".encode() if server.answer == "no JSON" else body.encode()
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - the names that the parent calls

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test here calls secret is none in the tests after it."""
    monkeypatch.setattr("adapterhub.core.redaction._own", {})


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    server = Echo(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, echo: Echo) -> Iterator[Adapt]:
    folder = tmp_path_factory.mktemp("echo")
    adapt = Adapt(folder)
    record = adapt.library.bases.add(make_base(folder / "base"), "base-7b")
    about = Description(name=parse_name("legal-qa"), version="1.0.0")
    adapt.library.add(make_adapter(folder / "made"), about, base=record)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr("adapterhub.distribution.http.wire.time.sleep", lambda _s: None)
        adapt.ok("remote", "add", "ours", echo.url, "--default")
        patch.setenv("ADAPTERHUB_TOKEN", TOKEN)
        yield adapt


def is_free_of(text: str, secret: str = TOKEN) -> bool:
    """Whether no form of more than eleven characters of the secret is in `text`."""
    folded = text.lower()
    return not any(form(secret).rstrip("=")[4:-4].lower() in folded for form in FORMS.values()) and (
        secret[:12].lower() not in folded
    )


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_no_command_prints_the_token_that_a_server_echoes(
    user: Adapt, echo: Echo, command: tuple[str, ...], answer: str
) -> None:
    typed = [echo.url if part == "URL" else part for part in command]
    echo.answer, echo.form, echo.came = answer, FORMS["as it is"], 0

    printed = [user(*typed, *more) for more in ([], ["--json"], ["--verbose"])]

    assert echo.came
    assert [done for done in printed if not is_free_of(done.stdout + done.stderr)] == []


@pytest.mark.parametrize("form", FORMS)
def test_a_token_is_removed_in_every_form(user: Adapt, echo: Echo, form: str) -> None:
    echo.answer, echo.form = "403", FORMS[form]

    printed = [user("search", "legal", "--remote", "ours", *more) for more in ([], ["--json"])]

    assert [done.exit_code for done in printed] == [14, 14]
    assert all("[removed]" in done.stderr for done in printed)
    assert [done for done in printed if not is_free_of(done.stdout + done.stderr)] == []


@pytest.mark.parametrize("form", FORMS)
def test_python_raises_errors_without_the_token(user: Adapt, echo: Echo, form: str) -> None:
    echo.answer, echo.form = "401", FORMS[form]

    with pytest.raises(NotAllowed) as refused:
        Library(user.folder / user.home).search("legal", remote="ours", token=TOKEN)

    assert is_free_of(str(refused.value))


def test_the_traceback_of_debug_output_has_no_token(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from adapterhub.cli import cli, main\n"
        "from adapterhub.core.redaction import keep_secret\n"
        f"keep_secret({TOKEN!r})\n"
        f"def fails(*_a, **_k): raise RuntimeError('echo ' + {TOKEN!r})\n"
        "cli.main = fails\n"
        "main()\n"
    )

    environment = os.environ | {"ADAPTERHUB_DEBUG": "1", "ADAPTERHUB_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )

    assert done.returncode == 1
    assert "RuntimeError: echo [removed]" in done.stderr
    assert is_free_of(done.stderr)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [65, 1_400, 70_000])
def test_a_long_token_is_removed_whole_by_a_short_pattern(form: str, length: int) -> None:
    token = (TOKEN * length)[:length]

    keep_secret(token)

    assert max(len(pattern.pattern) for pattern in redaction._own.values()) < 40_000
    told = without_secrets(f"no {FORMS[form](token)} here")
    assert is_free_of(told, token)
    assert len(told) < 60


def test_user_and_password_of_an_oci_registry_are_removed() -> None:
    OciWire("https://oci.example", Credentials(user="anabel", password="pw-of-anabel-9"))  # noqa: S106 - of no server
    pair = base64.b64encode(b"anabel:pw-of-anabel-9").decode()

    told = [
        shown(text)
        for text in (f"no Basic {pair}", "user anabel:pw-of-anabel-9", "pw=pw-of-anabel-9.", "l%3Apw%2Dof%2Danabel%2D9")
    ]

    assert all("[removed]" in text for text in told)
    assert not any(part in "".join(told) for part in ("pw-of", pair[8:], "%2Dof"))


OTHERS = {
    "https://s3.example/b?X-Amz-Credential=AKIA%2Fx&X-Amz-Signature=deadbeef&part=1": ("AKIA", "deadbeef"),
    "https://cdn.example/f?Expires=1&Policy=eyJTd&Signature=dead~beef&Key-Pair-Id=KP": ("dead~beef", "=KP", "eyJTd"),
    "https://store.example/f?sv=2024&sig=dead%2Fbeef%3D&sp=r": ("dead%2Fbeef",),
    "https://gcs.example/f?X-Goog-Signature=deadbeef&amp;X-Goog-Credential=who": ("deadbeef", "who"),
    "next=https%3A%2F%2Fs3%2Fb%3FX-Amz-Signature%3Ddeadbeef%26part=1": ("deadbeef",),
    "https://h.example/f?access_token=deadbeef#x": ("deadbeef",),
    "https://ana:deadbeef@h.example/f": ("ana", "deadbeef"),
    "https://deadbeef@h.example/f": ("deadbeef",),
    "Proxy-Authorization: Basic ZGVhZDpiZWVm0": ("ZGVhZDpiZWVm0",),
    "Authorization: Bearer dead.beef-1": ("dead.beef",),
    f"cannot read hf_{'aB3' * 12}": ("aB3aB3",),
}


@pytest.mark.parametrize("text", OTHERS)
def test_secrets_of_others_in_urls_and_headers_are_removed(text: str) -> None:
    for cleaned in (shown(text, 300), without_secrets(text)):
        assert not any(secret in cleaned for secret in OTHERS[text]), cleaned


@pytest.mark.parametrize(
    "text",
    [
        "send `Authorization: Bearer KEY`",
        "a bearer token is needed",
        "`acme/legal-qa==1.0.0+basic` is no basic adapter",
        "https://registry.example/acme/x?revision=v1.0.0&page=2",
        "sha256:0123456789abcdef",
        "git@h.example:acme/x",
    ],
)
def test_text_without_secrets_stays(text: str) -> None:
    assert shown(text) == text


@given(
    st.text(string.ascii_letters + string.digits + "-._~+/=:", min_size=6, max_size=60),
    st.sampled_from(sorted(FORMS.keys() - {"the first half"})),
    st.integers(0, 400),
)
@example("abcdef", "base64", 0)
@example("000za00", "base64", 0)  # the middle of its base64, `em`, is in `[removed]`
@example("0000D0000", "as it is", 290)  # and here in `[removed…`
def test_no_cut_and_no_place_lets_a_secret_through(secret: str, form: str, before: int) -> None:
    keep_secret(secret)
    told = FORMS[form](secret)
    middle = told.rstrip("=")[4:-4].lower()

    left = shown("é" * before + " " + told + " " + "é" * 300, 300)

    assert re.search(r"\[removed\]|…$", left)
    assert not middle or middle not in re.sub(r"\[removed\]|\[r?e?m?o?v?e?d?…$", "", left).lower()
