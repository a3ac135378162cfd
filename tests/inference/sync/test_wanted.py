"""The file of `adapt serve --sync`: what is read of it, and how its mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.core.errors import Malformed
from adapterhub.inference.serving.access.watched import WatchedFile
from adapterhub.inference.serving.sync.wanted import WantedAdapter, WantedAdapters

SYNCER = """
vLLMLoRAConfig:
  name: sql-loras-llama
  defaultBaseModel: base-7b
  ensureExist:
    models:
    - id: sql-v1
      source: acme/sql@prod
    - id: sql-v3
      source: sql>=1.2
      base-model: other-7b
  ensureNotExist:
    models:
    - id: sql-v2
      source: yard1/llama-2-7b-sql-lora-test
"""
"""The example of the syncer's own page, with our specs."""


def read(text: str) -> WantedAdapters:
    return WantedAdapters.parse(text.encode(), Path("adapters.yaml"))


def entries(*lines: str) -> str:
    """A file whose entries begin in line 4."""
    return "vLLMLoRAConfig:\n  ensureExist:\n    models:\n" + "".join(f"    {line}\n" for line in lines)


def test_the_file_of_the_syncer_is_read() -> None:
    found = read(SYNCER)

    assert (found.url, found.base, found.problems) == ("http://localhost:8000", "base-7b", ())
    assert found.adapters == (
        WantedAdapter(id="sql-v1", source="acme/sql@prod", base="base-7b"),
        WantedAdapter(id="sql-v3", source="sql>=1.2", base="other-7b"),
    )
    assert found.unwanted == {"sql-v2"}


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("vllm.adapters.svc", "http://vllm.adapters.svc:8100"),
        ("::1", "http://[::1]:8100"),
        ("[::1]", "http://[::1]:8100"),
    ],
)
def test_an_address_becomes_a_url(host: str, url: str) -> None:
    assert read(f"vLLMLoRAConfig:\n  host: '{host}'\n  port: 8100\n").url == url


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected the key `vLLMLoRAConfig` with a mapping"),
        ("vLLMLoRAConfig: []\n", "expected the key `vLLMLoRAConfig` with a mapping (line 1)"),
        ("vLLMLoRAConfig:\n  ensureExists: {}\n", "no such key; did you mean `ensureExist`? (line 2)"),
        ("vLLMLoRAConfig:\n  host: http://x\n", "`vLLMLoRAConfig.host`: expected the name or address of a host"),
        ("vLLMLoRAConfig:\n  port: true\n", "`vLLMLoRAConfig.port`: expected a number from 1 to 65535 (line 2)"),
        ("vLLMLoRAConfig:\n  port: 70000\n", "from 1 to 65535"),
        ("vLLMLoRAConfig:\n  name: 7\n", "`vLLMLoRAConfig.name`: expected text (line 2)"),
        ("vLLMLoRAConfig:\n  defaultBaseModel: [x]\n", "`vLLMLoRAConfig.defaultBaseModel`: expected text (line 2)"),
        ("vLLMLoRAConfig:\n  ensureExist:\n    models: x\n", "expected `models:` with a list (line 3)"),
        ("vLLMLoRAConfig:\n  ensureExist: [x]\n", "`vLLMLoRAConfig.ensureExist`: expected `models:` with a list"),
        ("vLLMLoRAConfig:\n  port: [\n", "is not YAML in line 3"),
        ("vLLMLoRAConfig: &x {}\nother: *x\n", "uses YAML aliases in line 2"),
        ("vLLMLoRAConfig:\n  port: 1\n  port: 2\n", "the key `port` twice, the second time in line 3"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_place(text: str, said: str) -> None:
    with pytest.raises(Malformed) as refused:
        read(text)

    assert said in refused.value.message
    assert "`adapters.yaml`" in refused.value.message


def test_a_whole_configmap_and_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(Malformed) as refused:
        read(f"kind: ConfigMap\ndata:\n  adapters.yaml: |\n{SYNCER.replace(chr(10), chr(10) + '    ')}")
    with pytest.raises(Malformed, match="is not UTF-8"):
        WantedAdapters.parse(b"\xff", Path("f"))

    assert "this is a ConfigMap itself" in refused.value.hint


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("- id: a", "  sorce: x"), "models[0].sorce`: no such key; did you mean `source`? (line 5)"),
        (("- id: a",), "models[0].source`: expected a SPEC, such as"),
        (("- id: 7", "  source: x"), "models[0].id`: expected printable text"),
        (("- id: ''", "  source: x"), "(line 4)"),
        (("- source: x",), "models[0].id`: expected printable text"),
        (("- text",), "models[0]`: expected `id` and `source` (line 4)"),
        (("- id: a", "  source: hf://x/y"), "`hf://x/y` is not a SPEC"),
        (("- id: a", "  source: x", "  base-model: 7"), "models[0].base-model`: expected text (line 6)"),
    ],
)
def test_a_wrong_entry_is_named_and_the_others_count(lines: tuple[str, ...], said: str) -> None:
    found = read(entries(*lines, "- id: good", "  source: legal-qa"))

    assert [one.id for one in found.adapters] == ["good"]
    assert said in " ".join(found.problems)
    assert found.kept <= {"a"}


def test_an_id_that_stands_twice_counts_in_no_place_and_stays_as_it_is() -> None:
    twice = read(entries("- id: a", "  source: x", "- id: a", "  source: y", "- id: b", "  source: z"))
    both = read(SYNCER.replace("sql-v2", "sql-v1"))

    assert ([one.id for one in twice.adapters], twice.kept) == (["b"], {"a"})
    assert twice.problems == ("`a` stands 2 times in `ensureExist`",)
    assert ([one.id for one in both.adapters], both.kept, both.unwanted) == (["sql-v3"], {"sql-v1"}, frozenset())
    assert both.problems == ("`sql-v1` stands in `ensureExist` and in `ensureNotExist`",)


def test_the_swap_of_a_mounted_configmap_is_seen_and_a_bad_file_leaves_the_last_good_one(tmp_path: Path) -> None:
    mounted = tmp_path / "adapters.yaml"

    def swap(folder: str, text: str) -> None:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "adapters.yaml").write_text(text)
        (tmp_path / "..new").symlink_to(folder)
        (tmp_path / "..new").rename(tmp_path / "..data")

    swap("..1", entries("- id: a", "  source: x"))
    mounted.symlink_to("..data/adapters.yaml")
    file = WatchedFile(mounted, WantedAdapters.parse)
    swap("..2", entries("- id: b", "  source: x"))
    assert file.refresh()
    swap("..3", "vLLMLoRAConfig: 7\n")
    assert not file.refresh()

    assert [one.id for one in file.value.adapters] == ["b"]
