"""Our code beside what vLLM's versions have, as `tests.inference.engines.interface` recorded it from their sources."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.formats.engines.vllm import MAX_RANKS, VERSIONS
from adapterhub.inference.serving.vllm import InstalledVllm, VllmOptions, command_of, environ_of
from adapterhub.vllm_plugin import cpu_rows, guard, model_names
from adapterhub.vllm_plugin.resolver import AdapterHubResolver
from tests.inference.engines.interface import FIX, OPERATIONS, USES, Facts, compared, fact, facts_in, recorded
from tests.support.standin_vllm import make_standin

PLUGIN = Path(guard.__file__).parent
CPU = InstalledVllm(python="python", version="0", is_cpu=True)
KNOWN = recorded()

pytestmark = pytest.mark.parametrize("facts", KNOWN.values(), ids=KNOWN)


def arguments(text: str | None) -> list[str]:
    """The names in `(self, name, other=)`, and in the fields of a class."""
    assert text is not None
    return [one.strip("*=") for one in text.removeprefix("async ").strip("()").split(", ")]


def called(name: str) -> Iterator[ast.Call]:
    """Every call of `name` in the plugin."""
    for path in PLUGIN.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                yield node


def test_no_name_that_we_use_is_missing(facts: Facts) -> None:
    assert compared(facts, facts) == (0, [])
    assert set(facts) == {f"{file.partition('|')[0]}: {name}" for file, names in USES.items() for name in names}


def test_every_import_of_ours_is_in_the_table(facts: Facts) -> None:
    imported = {
        f"{(node.module or '').removeprefix('vllm.').replace('.', '/')}: {alias.name}"
        for path in PLUGIN.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm"
        for alias in node.names
    }
    listed = {
        f"{where.removesuffix('.py').removesuffix('/__init__')}: {name.partition('.')[0]}"
        for where, name in (row.split(": ", 1) for row in facts)
    }

    assert imported
    assert imported <= listed
    assert cpu_rows._MODULE.replace(".", "/") == "vllm/lora/punica_wrapper/punica_cpu"


def test_the_resolver_and_the_requests_fit(facts: Facts) -> None:
    own = list(inspect.signature(AdapterHubResolver.resolve_lora).parameters)
    fields = set(arguments(facts["lora/request.py: LoRARequest"]))
    requests = list(called("LoRARequest"))
    refusals = list(called("GracefulHTTPError"))

    assert inspect.iscoroutinefunction(AdapterHubResolver.resolve_lora)
    assert own == arguments(facts["lora/resolver.py: LoRAResolver.resolve_lora"])
    assert len(requests) >= 2
    assert all({keyword.arg for keyword in call.keywords} <= fields for call in requests)
    names = arguments(facts["exceptions.py: GracefulHTTPError.__init__"])
    assert {len(call.args) for call in refusals} == {len(names) - 1}


def test_the_guard_knows_every_route_that_loads_and_unloads(facts: Facts) -> None:
    routes = arguments(facts["entrypoints/serve/lora/api_router.py: routes"])

    assert set(routes) == {guard.LOADING[0], model_names.UNLOAD}


def test_the_middleware_reads_what_the_list_of_models_has(facts: Facts) -> None:
    read = {
        node.attr
        for path in PLUGIN.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"models", "_models(scope)"}
    }
    own = "entrypoints/openai/models/serving.py: OpenAIServingModels."

    assert read
    assert all(facts[f"{own}{name}"] for name in read)


def test_the_command_line_and_the_environment_are_known(facts: Facts) -> None:
    options = VllmOptions(
        model=Path("/m"), served_name="b", host="h", port=1, max_rank=8, slots=1, cpu_slots=1, extra=()
    )
    words = [word for word in command_of(CPU, options) if word.startswith("--")]
    names = {row.rpartition(".")[2] for row in facts if "EngineArgs." in row or "FrontendArgs." in row}
    given = {"VLLM_PLUGINS": ""}

    assert {word[2:].replace("-", "_") for word in words} <= {*names, "api_server_count"}
    assert {f"envs.py: '{name}'" for name in environ_of(CPU, given, {}) if name.startswith("VLLM")} <= set(facts)
    assert facts["config/lora.py: MaxLoRARanks"] == f"Literal[{', '.join(map(str, MAX_RANKS))}]"


def test_the_operations_take_what_vllm_gives_and_are_replaced_where_it_has_the_fault(
    facts: Facts, request: pytest.FixtureRequest
) -> None:
    version = request.node.callspec.id
    for name in OPERATIONS:
        given = arguments(facts[f"lora/ops/torch_ops/lora_ops.py: {name}"])
        ours = list(inspect.signature(getattr(cpu_rows, f"_{name.partition('_')[2]}")).parameters)[2:]
        rows = 6 if name.startswith("sgmv") else 1  # as `cpu_rows._operation` takes them apart
        assert len(given[3 + rows :]) == len(ours)
        assert given[-1] == ours[-1]  # vLLM passes it by name

    assert set(cpu_rows.OPERATIONS) == set(OPERATIONS)
    assert (facts[FIX] is None) == cpu_rows.needs_mending(version)


def test_verdicts_are_for_recorded_versions_and_the_stand_in_has_only_what_vllm_has(
    facts: Facts, tmp_path: Path
) -> None:
    make_standin(tmp_path)

    def source_of(file: str) -> str | None:
        path = tmp_path / "site" / "vllm" / file
        return path.read_text(encoding="utf-8") if path.is_file() else None

    standin = facts_in(source_of)
    fields = "lora/request.py: LoRARequest"

    assert {version.rpartition(".")[0] for version in KNOWN} <= set(VERSIONS)
    assert set(arguments(standin[fields])) <= set(arguments(facts[fields]))
    assert standin["exceptions.py: GracefulHTTPError.__init__"] == facts["exceptions.py: GracefulHTTPError.__init__"]


def test_a_changed_signature_a_lost_name_and_a_lost_file_are_told(facts: Facts) -> None:
    tree = ast.parse("class LoRAResolver:\n    async def resolve_lora(self, base_model_name, *, lora_name=None): ...\n")
    changed = fact(tree, "LoRAResolver.resolve_lora")

    assert changed == "async (self, base_model_name, *, lora_name=)"
    assert fact(tree, "LoRAResolverRegistry") is None
    assert compared(facts, facts | {"lora/resolver.py: LoRAResolver.resolve_lora": changed})[1][0].startswith("differs")
    assert compared(facts, facts_in(lambda _: None))[0] == len(facts) - 1
