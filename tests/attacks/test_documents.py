"""JSON and TOML of strangers: what two readers could read as two things is refused, what is printed cannot steer."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.cli.output import json_text
from adapterhub.core.digests import strict_json
from adapterhub.core.errors import Malformed
from adapterhub.formats.manifest import MANIFEST_FILE, Manifest
from adapterhub.projects.file import MAX_ENTRIES, parse_project
from adapterhub.weights.recipes.toml import parse_recipe
from tests.registry.running import running
from tests.support.command_line import Adapt
from tests.support.hostile_kinds import good
from tests.support.tiny import make_adapter, make_base

PACKAGE = Path(__file__).resolve().parent.parent.parent / "adapterhub"
OWN_JSON = {
    "cli/output.py": "writes only",
    "core/digests.py": "the strict reader itself",
    "cli/start/demo_run/train.py": "the maker of the demo's own adapters",
    "inference/serving/answers.py": "an error that an engine that was started here wrote, on loopback",
    "inference/contracts/runners.py": "what an engine that was started here says, on loopback",
    "inference/serving/llama_cpp/app.py": "what an engine that was started here says, on its socket",
    "inference/serving/llama_cpp/engine.py": "the same",
    "inference/serving/vllm.py": "what a child of our own printed",
    "projects/sync/folders.py": "a manifest of the store, whose digest was compared a line before; and the library's own note "
    "of a sync, in which a damaged stamp equals that of no file",
    "cli/use/mcp.py": "the document that a command of this process wrote a line before",
    "cli/start/base.py": "a record that this program wrote a line before",
    "formats/prompts/_sandbox.py": "the template and prompt that its parent process wrote",
    "formats/prompts/form.py": "what its own sandbox wrote, its shape checked a line later",
    "formats/dialects/form.py": "the config that the strict reader has read before",
    "formats/naming/table.py": "the table of names in the package",
    "formats/engines/_tables.py": "the tables of engines in the package",
    "formats/gguf/names.py": "as that of `formats/naming/table.py`",
    "formats/cards/metadata.py": "what it dumped itself a line before, to have plain values",
    "vllm_plugin/model_names.py": "a request that vLLM reads the same way, and the list of models that vLLM made",
    "cli/completion/completing.py": "the list of remotes that this program wrote",
}
"""Modules that may call `json.loads`: what they read was written or checked by this program a moment ago."""


def test_json_of_others_is_read_by_the_strict_reader_alone() -> None:
    lenient = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if "load" in (source := path.read_text(encoding="utf-8")) and "json" in source
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr in {"loads", "load"}
        if isinstance(node.value, ast.Name) and node.value.id == "json"
    }

    assert lenient <= OWN_JSON.keys()


@pytest.mark.parametrize("raw", [b'{"a": 1, "a": 2}', b'{"b": [{"a": 1, "\\u0061": 1}]}'])
def test_a_key_that_is_given_twice_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="given twice"):
        strict_json(raw)


def in_a_config(folder: Path) -> None:
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"r":', '"r": 1, "r":', 1))


def in_a_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).write_text('{"schema": "adapterhub/1", "name": "a", "name": "b"}')


@pytest.mark.parametrize("twice", [in_a_config, in_a_manifest])
@pytest.mark.parametrize("command", ["verify {}", "add {} --name n", "compare {} ./good --diff", "install n --from {}"])
def test_no_command_takes_an_adapter_with_a_key_given_twice(
    twice: Callable[[Path], None], command: str, tmp_path: Path
) -> None:
    good(tmp_path / "good")
    good(tmp_path / "bad")
    twice(tmp_path / "bad")

    done = Adapt(tmp_path)(*command.replace("{}", "./bad").split())

    if command.startswith("compare") and twice is in_a_manifest:
        assert done.exit_code == 0  # the manifest is not what is compared, and one that is none is passed over
    else:
        assert done.exit_code in (3, 16), done.stderr


def test_an_index_of_a_base_with_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    (base / "model.safetensors").rename(base / "model-1.safetensors")
    (base / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-1.safetensors", "a": "model-2.safetensors"}}'
    )

    said = Adapt(tmp_path).fails(16, "base", "add", "./base", "--as", "b")

    assert "`a` is given twice" in said


def test_a_lock_with_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapters.toml").write_text("")
    (tmp_path / "adapters.lock").write_text('schema = "adapterhub-lock/1"\nschema = "adapterhub-lock/1"\n')

    assert "line 2" in Adapt(tmp_path).fails(16, "sync")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/repos/create", b'{"name": "a/x", "type": "model", "name": "a/y"}'),
        ("/api/adapt/v1/adapters/acme/x/yank", b'{"version": "1.0.0", "reason": "r", "version": "2.0.0"}'),
        ("/api/adapt/v1/adapters/acme/x/unyank", b'{"version": "1.0.0", "version": "2.0.0"}'),
        ("/api/adapt/v1/tokens", b'{"user": "eve", "role": "read", "role": "admin"}'),
        ("/api/models/acme/x/paths-info/main", b'{"paths": [], "paths": ["a"]}'),
    ],
)
def test_the_registry_refuses_a_body_with_a_key_given_twice(path: str, body: bytes, registry: Any) -> None:
    import httpx

    headers = {"Authorization": f"Bearer {registry.token}", "Content-Type": "application/json"}

    answer = httpx.post(registry.url + path, content=body, headers=headers)

    assert (answer.status_code, "given twice" in answer.text) == (400, True), answer.text


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with running(tmp_path_factory.mktemp("registry")) as server:
        server.post("/api/repos/create", {"name": "x", "organization": "acme", "type": "model"})
        yield server


# ---------------------------------------------------------------- numbers and counts
RECIPE = (
    'format = 1\nname = "m"\nmethod = "{method}"\n{seed}\n[options]\n{option}\n[[inputs]]\nspec = "a"\nweight = 1\n'
)


@pytest.mark.parametrize("number", ["8.0", "1e1", "8.5", "inf", "nan", "true"])
def test_a_whole_number_in_a_recipe_is_written_without_a_point(number: str) -> None:
    with pytest.raises(Malformed, match=r"options\.rank.*whole number"):
        parse_recipe(RECIPE.format(method="svd", seed="", option=f"rank = {number}").encode())
    with pytest.raises(Malformed, match="seed: expected a whole number"):
        parse_recipe(RECIPE.format(method="dare_linear", seed=f"seed = {number}", option="").encode())


@pytest.mark.parametrize(
    "text",
    [
        "[adapters]\n" + "".join(f'a{n}="*"\n' for n in range(100_000)),
        "".join(f'[groups.g{n}]\na{n}="*"\n' for n in range(MAX_ENTRIES)),
        "".join(f'[remotes.r{n}]\nurl="http://h"\n' for n in range(MAX_ENTRIES + 1)),
    ],
    ids=["adapters", "groups", "remotes"],
)
def test_a_project_of_more_entries_than_the_limit_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(Malformed, match=f"the limit is {MAX_ENTRIES:,}"):
        parse_project(text.encode(), tmp_path, "adapters.toml")


def test_a_project_at_the_limit_is_read(tmp_path: Path) -> None:
    text = "[adapters]\n" + "".join(f'a{n}="*"\n' for n in range(MAX_ENTRIES))

    assert len(parse_project(text.encode(), tmp_path, "adapters.toml").adapters) == MAX_ENTRIES


# ---------------------------------------------------------------- what is printed
UNSEEN = "a\u202eb\x1b[2J\x7f\u2066c\ud800\U000e0001é"


def test_json_documents_hold_no_character_that_does_not_print() -> None:
    text = json_text({"said": UNSEEN}, indent=1)

    assert text.replace("\n", "").isprintable()
    assert (json.loads(text)["said"], "é" in text) == (UNSEEN, True)


@pytest.mark.parametrize("command", ["info n", "audit n", "list", "search", "path n", "verify n", "tree n", "check n"])
def test_no_command_prints_a_strangers_bidi_marks_raw(command: str, tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "made")
    adapt = Adapt(tmp_path)
    adapt.ok("base", "add", "./base", "--as", "b")
    words = {"--description": "say \u202efdp.exe\x1b[2J", "--task": "t\u2066x", "--license": "MIT\u202e"}
    adapt.ok("add", "./made", "--name", "n", "--base", "b", *(word for pair in words.items() for word in pair))

    for more in ((), ("--json",)):
        done = adapt(*command.split(), *more)

        assert all(c.isprintable() or c in "\n\t" for c in done.stdout + done.stderr)


def test_a_manifest_keeps_what_it_says(tmp_path: Path) -> None:
    good(tmp_path / "made")
    adapt = Adapt(tmp_path)
    adapt.ok("add", "./made", "--name", "n", "--description", "\u202e")

    said = json.loads(adapt.ok("info", "n", "--json"))

    assert "\u202e" in json.dumps(said, ensure_ascii=False)
    build = next(adapt.library.installed())
    assert Manifest.read(build.folder / MANIFEST_FILE).description == "\u202e"
