"""What the plugin uses of vLLM, read in the sources of a version from PyPI without running them.

python -m tests.inference.engines.interface            the newest version
python -m tests.inference.engines.interface 0.33.0     this one; `--write` keeps what was found in tests/data

`pip download` fetches the wheel, of several hundred MB, into a temporary folder. The command lists each name that the
version lacks and each signature that differs from the last recorded version. It exits with 1 if a name is missing.
`tests/inference/test_vllm_interface.py` compares our code with the recorded versions, without a network.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

RECORD: Final = Path(__file__).resolve().parent.parent.parent / "data" / "vllm-interface.json"
OPERATIONS: Final = tuple(
    f"{prefix}_{name}" for prefix in ("bgmv", "sgmv") for name in ("shrink", "expand", "expand_slice")
)

USES: Final[Mapping[str, tuple[str, ...]]] = {
    # the request, the resolver and its refusals: vllm_plugin/resolver.py, in_process.py
    "lora/request.py": ("LoRARequest",),
    "lora/resolver.py": (
        "LoRAResolver.resolve_lora",
        "LoRAResolverRegistry",
        "_LoRAResolverRegistry.get_supported_resolvers",
        "_LoRAResolverRegistry.register_resolver",
    ),
    "exceptions.py": ("GracefulHTTPError.__init__",),
    "plugins/__init__.py": ("DEFAULT_PLUGINS_GROUP",),
    # what middleware reads and changes: vllm_plugin/model_names.py, residency.py, guard.py
    "entrypoints/openai/models/serving.py": (
        "OpenAIServingModels.is_base_model",
        "OpenAIServingModels.lora_requests",
        "OpenAIServingModels.model_config",
        "OpenAIServingModels.engine_client",
        "OpenAIServingModels.resolve_lora",
    ),
    "entrypoints/serve/lora/protocol.py": ("LoadLoRAAdapterRequest", "UnloadLoRAAdapterRequest"),
    "entrypoints/serve/lora/api_router.py": ("routes",),
    "entrypoints/launchers/api_server/app_state.py": ("state.openai_serving_models",),
    "entrypoints/serve/middleware/register.py": ("app.add_middleware(imported)",),
    # the operations on CPUs: vllm_plugin/cpu_rows.py
    "platforms/__init__.py": ("current_platform",),
    "platforms/interface.py": ("Platform.is_cpu",),
    "lora/punica_wrapper/punica_cpu.py": OPERATIONS,
    "lora/ops/torch_ops/lora_ops.py": (*OPERATIONS, "lora_indices_tensor == -1"),
    # the command line and the environment: inference/serving/vllm.py, engines/vllm.py
    "entrypoints/openai/api_server.py": ("__name__ == '__main__'",),
    "entrypoints/common/cli_args.py|entrypoints/launchers/cli_args.py": (
        "FrontendArgs.host",
        "FrontendArgs.port",
        "FrontendArgs.middleware",
        "FrontendArgs.api_key",
        "'--config'",
        "'--api-server-count'",
    ),
    "engine/arg_utils.py": (
        "EngineArgs.model",
        "EngineArgs.served_model_name",
        "EngineArgs.revision",
        "EngineArgs.enable_lora",
        "EngineArgs.max_lora_rank",
        "EngineArgs.max_loras",
        "EngineArgs.max_cpu_loras",
        "EngineArgs.enforce_eager",
        "EngineArgs.dtype",
    ),
    "config/lora.py": ("MaxLoRARanks", "LoRAConfig.max_lora_rank"),
    "envs.py": (
        "'VLLM_ALLOW_RUNTIME_LORA_UPDATING'",
        "'VLLM_API_KEY'",
        "'VLLM_CPU_OMP_THREADS_BIND'",
        "'VLLM_NO_USAGE_STATS'",
        "'VLLM_PLUGINS'",
    ),
    # what `adapterhub.vllm` reads of a model in the same process: vllm_plugin/in_process.py
    "entrypoints/llm.py": ("LLM.generate", "LLM.llm_engine"),
    "v1/engine/llm_engine.py": ("LLMEngine.vllm_config",),
    "v1/engine/async_llm.py": ("AsyncLLM.vllm_config", "AsyncLLM.output_processor", "AsyncLLM.remove_lora"),
    "v1/engine/output_processor.py": ("OutputProcessor.request_states", "RequestState.lora_name"),
    "config/vllm.py": ("VllmConfig.model_config", "VllmConfig.lora_config"),
    "config/model.py": ("ModelConfig.model", "ModelConfig.revision"),
}
"""Each file below `vllm/`, with the names that we import, override, read or pass. An entry that is no dotted name is an
expression of its source; `routes` are the paths of its `router.post`. `|` stands between the places of a file in different
versions."""

FIX: Final = "lora/ops/torch_ops/lora_ops.py: lora_indices_tensor == -1"
"""Not a name that we use: a version that has it skips rows without an adapter on CPUs itself."""

Facts = dict[str, str | None]
"""By `file: name`, the signature, the fields or the value; None for a name that is missing."""


def facts_in(source_of: Callable[[str], str | None]) -> Facts:
    """The facts for every row of `USES`, with the text of a file by its name; None for a file that is missing."""
    found: Facts = {}
    for file, names in USES.items():
        text = next((text for place in file.split("|") if (text := source_of(place)) is not None), None)
        tree = ast.parse(text) if text is not None else None
        where = file.partition("|")[0]
        found |= {f"{where}: {name}": fact(tree, name) if tree else None for name in names}
    return found


def fact(tree: ast.Module, name: str) -> str | None:
    """What the module has under `name`: see `USES`."""
    if name == "routes":
        return ", ".join(sorted(_routes(tree)))
    if not name.replace(".", "").replace("_", "").isalnum() or name.startswith("state."):
        wanted = ast.dump(ast.parse(name, mode="eval").body).replace("Store()", "Load()")
        return (
            "there" if any(ast.dump(node).replace("Store()", "Load()") == wanted for node in ast.walk(tree)) else None
        )
    node: ast.AST | None = tree
    for part in name.split("."):
        node = _child(node, part) if node is not None else None
    return None if node is None else _described(node)


def _routes(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "router.post":
            yield ast.literal_eval(node.args[0])


def _child(parent: ast.AST, name: str) -> ast.AST | None:
    """The definition of `name` in a module or class; for an attribute that methods set, the assignment."""
    body = list(ast.iter_child_nodes(parent))
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            return node
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node
        if isinstance(node, ast.ImportFrom) and name in {alias.asname or alias.name for alias in node.names}:
            return node
    if isinstance(parent, ast.Module):  # a lazy attribute
        lazy = _child(parent, "__getattr__") if name != "__getattr__" else None
        return lazy if lazy and repr(name) in ast.unparse(lazy) else None
    own = [target for node in ast.walk(parent) for target in _targets(node) if ast.unparse(target) == f"self.{name}"]
    return own[0] if own else None


def _targets(node: ast.AST) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []


def _described(node: ast.AST) -> str:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        if node.name == "__getattr__":
            return "lazy"
        kind = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
        return f"{kind}({', '.join(_arguments(node.args))})"
    if isinstance(node, ast.ClassDef):
        fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
        return ", ".join(f"{ast.unparse(field.target)}{'=' if field.value else ''}" for field in fields)
    if isinstance(node, ast.ImportFrom):
        return "imported"
    value = node.value if isinstance(node, ast.Assign) else None
    return ast.unparse(value) if value is not None else "attribute"


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    """The names in order; those with a default end in `=`."""
    plain = [*arguments.posonlyargs, *arguments.args]
    without = len(plain) - len(arguments.defaults)
    yield from (f"{one.arg}{'=' if at >= without else ''}" for at, one in enumerate(plain))
    if arguments.vararg or arguments.kwonlyargs:
        yield f"*{arguments.vararg.arg if arguments.vararg else ''}"
    for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield f"{one.arg}{'=' if default else ''}"
    if arguments.kwarg:
        yield f"**{arguments.kwarg.arg}"


def recorded() -> dict[str, Facts]:
    """The facts of each recorded version, the oldest first."""
    value: dict[str, Facts] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    return value


def facts_of(version: str) -> tuple[str, Facts]:
    """The version, and its facts; "" for the newest on PyPI."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "--dest", folder, f"vllm=={version}" if version else "vllm"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())

            def source_of(file: str) -> str | None:
                return archive.read(f"vllm/{file}").decode() if f"vllm/{file}" in names else None

            return wheel.name.split("-")[1], facts_in(source_of)


def main(arguments: list[str]) -> int:
    """Read the versions; 1 if one lacks a name that we use."""
    known, is_whole = recorded(), True
    for asked in [one for one in arguments if one != "--write"] or [""]:
        version, facts = facts_of(asked)
        before = max((one for one in known if one != version), key=_order, default=version)
        missing, lines = compared(known.get(before, facts), facts)
        is_whole = is_whole and not missing
        print(f"vLLM {version}: {len(facts)} names, {missing} missing; beside {before}:", *lines, sep="\n  ")  # noqa: T201 - its report
        known[version] = facts
    if "--write" in arguments:
        text = json.dumps(dict(sorted(known.items(), key=lambda one: _order(one[0]))), indent=1)
        RECORD.write_text(f"{text}\n", encoding="utf-8")
    return 0 if is_whole else 1


def compared(before: Facts, now: Facts) -> tuple[int, list[str]]:
    """How many names are missing, and a line for each that is, or that changed."""
    missing = [name for name, value in now.items() if value is None and name != FIX]
    changed = [name for name, value in now.items() if name not in missing and value != before.get(name)]
    lines = [f"missing: {name}" for name in missing]
    return len(missing), lines + [f"differs: {name}\n    {before.get(name)}\n    {now[name]}" for name in changed]


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
