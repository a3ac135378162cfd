"""The other forms of a base on the pages: of a registry, by what manifests say, and of a library, by its links."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import huggingface_hub.constants
import pytest
from peft import LoraConfig
from transformers import LlamaForCausalLM

import adapterhub
from adapterhub.core.specs import parse_name
from adapterhub.library.intake.description import Description
from tests.registry.running import running
from tests.registry.test_base_forms import World
from tests.support.browser import PHONE, overflow, quiet, violations
from tests.support.quantised_copies import float8_copy, gguf_copy
from tests.support.tiny_models import llama, save_adapter

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("forms")
    with pytest.MonkeyPatch.context() as patch, running(folder / "registry", derives=False) as server:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        world = World(server, folder)
        world.push_all()
        world.compare()
        yield world


def tiny(seed: int = 0) -> LlamaForCausalLM:
    return llama(seed, intermediate_size=64)  # GGUF's blocks are 32 wide


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, adapterhub.Library]]:
    folder = tmp_path_factory.mktemp("copies")
    tiny().save_pretrained(folder / "source")
    float8_copy(folder / "source", folder / "fp8")
    gguf_copy(folder / "source", folder / "copy.gguf")
    tiny(9).save_pretrained(folder / "other")
    library = adapterhub.Library(folder / "home")
    for name, file in (("source", "source"), ("fp8", "fp8"), ("gguf", "copy.gguf"), ("other", "other")):
        library.add_base(folder / file, name)
    about = Description(name=parse_name("a"), version="1.0.0")
    made = save_adapter(folder / "a", tiny, LoraConfig(r=2, target_modules=["q_proj"]))
    library.add(made, about, base=library.bases.get("source"))
    with library.ui() as ui:
        yield ui, library


def test_the_pages_of_a_registry_say_what_an_adapter_fits_as_well(page: Page, world: World) -> None:
    page.set_viewport_size(PHONE)
    with quiet(page, world.server.url):
        page.goto(f"{world.server.url}/acme/for-source")
        also = page.get_by_text("Also fits")
        assert "same weights in another precision" in also.inner_text()
        assert (violations(page), overflow(page)) == ([], 0)
        also.get_by_role("link").nth(0).click()
        page.wait_for_url("**/base/**")
        page.get_by_role("listitem").filter(has_text="; 1 adapter").first.wait_for()
        assert (violations(page), overflow(page)) == ([], 0)


def test_the_pages_of_a_library_know_its_links(page: Page, ui: tuple[Any, adapterhub.Library]) -> None:
    served, _ = ui
    url = f"http://127.0.0.1:{served.port}"
    page.set_viewport_size(PHONE)
    with quiet(page, url):
        page.goto(served.url)
        page.wait_for_url("**/")
        groups = {
            name: page.locator("section").filter(has=page.get_by_role("heading", name=name)) for name in ("fp8", "gguf")
        }
        assert "fp8-block copy of source" in groups["fp8"].inner_text()
        assert groups["fp8"].get_by_role("link", name="Try in the playground").count() == 1
        assert "gguf-q8_0 copy of source" in groups["gguf"].inner_text()
        assert "weights on this machine" in groups["gguf"].inner_text()
        assert groups["gguf"].get_by_role("link", name="Try in the playground").count() == 0  # it takes a folder
        assert (violations(page), overflow(page)) == ([], 0)
        page.goto(f"{url}/-/a")
        said = page.get_by_text("Also fits").inner_text()
        assert said == "Also fits fp8 (fp8-block copy of it), gguf (gguf-q8_0 copy of it)."
        page.get_by_text("Also fits").get_by_role("link").first.click()
        page.wait_for_url("**/base/**")
        listed = page.get_by_role("listitem").filter(has_text="source of this fp8-block copy; 1 adapter")
        assert listed.get_by_role("link").inner_text() == "source"
        page.get_by_role("listitem").filter(has_text="gguf-q8_0 copy of the same base; 0 adapters").wait_for()
        assert (violations(page), overflow(page)) == ([], 0)
