"""One registry for the tests of its pages, filled by real pushes, and Chromium to look at it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import huggingface_hub.constants
import pytest
from huggingface_hub import CommitOperationAdd

from adapterhub.core.specs import parse_name
from adapterhub.distribution.hub import Hub
from adapterhub.formats.release import Release
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from tests.registry.running import Running, running
from tests.support.contracts import small_contract
from tests.support.programs import needs_chromium
from tests.support.tiny import make_adapter, make_base

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CARD = (
    "---\nlicense: mit\n---\n# Legal questions\n\nAnswers *short* questions. See [the law](https://example.org/law).\n"
)


@dataclass(frozen=True)
class World:
    """A registry with `acme/legal-qa` (two versions, the first yanked), `acme/signed`, and the private `acme/hidden`."""

    server: Running
    base_sha256: str
    reader: str
    commits: tuple[str, str]

    @property
    def url(self) -> str:
        return self.server.url

    def get(self, path: str, **options: object) -> httpx.Response:
        return httpx.get(self.url + path, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("pages")
    library = Library(folder / "home")
    base = library.bases.add(make_base(folder / "base"), "base-7b")
    library.catalog.put_base(base)
    with pytest.MonkeyPatch.context() as patch, running(folder / "registry") as server:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        api = server.api
        hub = Hub(endpoint=server.url, token=server.token)

        def push(repo: str, version: str, *, private: bool = False, task: str | None = None, **adapter: object) -> str:
            name = repo.partition("/")[2]
            made = make_adapter(folder / "made" / f"{name}-{version}", **adapter)  # type: ignore[arg-type]
            (made / "README.md").write_text(CARD)
            about = Description(name=parse_name(name), version=version, task=task, description=f"What {name} does")
            build = library.add(made, about, base=base).build
            release = Release(manifest=build.manifest, namespace=None, origin="home", base_hub_id="org/base")
            copy(release, library, hub.to(repo, private=private))
            return str(api.model_info(repo).sha)

        first = push("acme/legal-qa", "1.0.0", task="legal")
        server.yank("acme/legal-qa", "leaks names")
        second = push("acme/legal-qa", "1.1.0", task="legal", rank=8, seed=1)
        push("acme/hidden", "1.0.0", private=True, seed=2)
        push("acme/signed", "1.0.0", seed=3)
        more = {"model.sig": b"{}", "evals.jsonl": small_contract().to_bytes()}
        added = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in more.items()]
        api.create_commit("acme/signed", added, commit_message="Sign it, with its tests")
        api.hf_hub_download("acme/signed", "adapter_config.json", cache_dir=folder / "cache")
        server.registry.downloads.flush()
        reader = server.registry.tokens.create("rita", "read", namespaces=["acme/*"])
        yield World(server, base.fingerprint.weights.removeprefix("sha256:"), reader, (first, second))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium for the tests of one file. As root, it has no sandbox.

    Playwright's event loop runs in this thread until it ends; while it does, no test of another file may come.
    """
    from playwright.sync_api import sync_playwright

    program = needs_chromium()
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page with cookies of its own."""
    with browser.new_context() as context:
        yield context.new_page()
