"""The pytest plugin that points the Hub client's own tests at our registry. It runs in their environment, without our code.

Their source archive has no `conftest.py`, so this plugin brings the fixtures that the tests name; a checkout's own
`conftest.py` wins over it. UPSTREAM_SUITE holds the URL and the tokens as JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import _http

GIVEN = json.loads(os.environ["UPSTREAM_SUITE"])
OURS = GIVEN["ENDPOINT_STAGING"]
MARKERS = ("xet", "no_xet", "inference", "production", "deprecated", "git_lfs")
PLACES = {
    "HF_HOME": "",
    "HF_HUB_CACHE": "hub",
    "HUGGINGFACE_HUB_CACHE": "hub",
    "HF_XET_CACHE": "xet",
    "HF_ASSETS_CACHE": "assets",
    "HF_TOKEN_PATH": "token",
    "HF_STORED_TOKENS_PATH": "stored_tokens",
}

RepoFactory = Callable[..., Any]
"""Their tests import it from their `conftest`."""

_values = importlib.import_module("tests.testing_constants")  # before a test module copies the values
for _name, _value in GIVEN.items():
    setattr(_values, _name, _value)


HOSTS = ("huggingface.co", "hub-ci.huggingface.co")
"""What some functions and tests name whatever the settings say."""


def _at_ours(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(scheme="http", netloc=urlsplit(OURS).netloc)) if parts.hostname in HOSTS else url


def _client() -> Any:
    """A client that sends to our registry what names another hub, of httpx2 or httpx."""
    client = _http.default_client_factory()

    def redirect(request: Any) -> None:
        if request.url.host in HOSTS:
            request.url = type(request.url)(_at_ours(str(request.url)))
            request.headers["Host"] = request.url.netloc.decode()

    client.event_hooks["request"].append(redirect)
    return client


def _session() -> Any:
    """The same, of requests."""
    session = _http._default_backend_factory()
    send = session.send

    def redirected(request: Any, **options: Any) -> Any:
        request.url = _at_ours(request.url)
        return send(request, **options)

    session.send = redirected
    return session


if hasattr(huggingface_hub, "set_client_factory"):
    huggingface_hub.set_client_factory(_client)
else:  # before 1.0
    huggingface_hub.configure_http_backend(_session)


def pytest_configure(config: pytest.Config) -> None:
    """Know the marks of the suite."""
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: of the suite")


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.mktemp("home")
    for name, below in PLACES.items():
        monkeypatch.setattr(constants, name, str(home / below) if below else str(home))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_EXPERIMENTAL_WARNING", True)
    with contextlib.suppress(ImportError):  # of some versions
        detect = importlib.import_module("huggingface_hub.utils._detect_agent")
        monkeypatch.setattr(detect, "_registry", detect._EMPTY_REGISTRY)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with contextlib.suppress(ImportError, AttributeError):
        out = importlib.import_module("huggingface_hub.cli._output").out
        out.set_mode()
        out.set_no_truncate(False)
    auth = importlib.import_module("huggingface_hub.utils._auth")
    for name, value in {"_OAUTH_REFRESH_CACHE": None, "_OAUTH_REFRESH_WARNED": False}.items():
        if hasattr(auth, name):
            monkeypatch.setattr(auth, name, value)


@pytest.fixture(autouse=True)
def _marks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Heed the marks: Xet is installed here, and a deprecated function has to warn."""
    node = request.node
    if node.get_closest_marker("no_xet") or node.get_closest_marker("git_lfs"):
        pytest.skip("for an environment without Xet, or with git-lfs")
    if node.get_closest_marker("xet"):
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    names = [name for marker in node.iter_markers("deprecated") for name in marker.args]
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(pytest.warns(FutureWarning, match=f"'{name}'"))
        yield


@pytest.fixture(scope="session")
def api() -> HfApi:
    """The client with the token of the suite's user."""
    return HfApi(endpoint=GIVEN["ENDPOINT_STAGING"], token=GIVEN["TOKEN"])


def _new_name(repo_type: str) -> str:
    return f"{repo_type}-{uuid.uuid4().hex[:6]}-{time.time_ns() // 100_000}"


@pytest.fixture
def new_repo_id(api: HfApi) -> Iterator[str]:
    """The name of a model repository that a test makes, and that is removed after it."""
    repo_id = f"{GIVEN['USER']}/{_new_name('model')}"
    yield repo_id
    api.delete_repo(repo_id, missing_ok=True)


@pytest.fixture
def repo_factory(api: HfApi) -> Iterator[RepoFactory]:
    """Makes repositories, and removes them after the test."""
    made: list[tuple[str, str]] = []

    def make(repo_type: str = "model", **options: Any) -> Any:
        if repo_type == "space":
            options.setdefault("space_sdk", "gradio")
        options.setdefault("repo_id", _new_name(repo_type))
        url = api.create_repo(repo_type=repo_type, **options)
        made.append((url.repo_id, repo_type))
        return url

    yield make
    for repo_id, repo_type in made:
        with contextlib.suppress(Exception):
            api.delete_repo(repo_id=repo_id, repo_type=repo_type)


@pytest.fixture(scope="module")
def vcr_config() -> dict[str, Any]:
    """No test here plays a recording back."""
    return {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write the outcome of each test as a line of JSON; an error of its set-up or clean-up is a failure."""
    if report.when == "call" or report.outcome != "passed":
        line = {"test": report.nodeid, "outcome": report.outcome, "why": _reason(report)}
        with Path(os.environ["UPSTREAM_OUTCOMES"]).open("a", encoding="utf-8") as outcomes:
            outcomes.write(json.dumps(line) + "\n")


def _reason(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(getattr(crash, "message", report.longrepr or ""))[:2000]
