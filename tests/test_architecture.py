"""The floors of the house (docs/explanation/architecture.md), held as data and read off the imports."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "adapterhub"

FLOORS: dict[str, int] = {
    # 0 words: what is typed and what is refused
    **dict.fromkeys(["errors", "digests", "specs", "home", "limits", "lookalike", "hub_ids"], 0),
    **dict.fromkeys(["dates", "real_folder", "output_place", "owned_file", "files", "claims", "root"], 0),
    # 1 values: what files say
    **dict.fromkeys(
        ["tensorfile", "tensorheader", "tensorfacts", "filekind", "precision", "hints", "module_places"], 1
    ),
    **dict.fromkeys(["key_maps", "base_names"], 1),
    **dict.fromkeys(["spdx", "license_rules"], 1),
    **dict.fromkeys(["patterns", "config_fields", "config_names", "config_reading", "peft_config"], 1),
    **dict.fromkeys(["fingerprint", "heldfile", "weightfiles", "weightreader", "manifest", "release"], 1),
    # 2 parts
    **dict.fromkeys(["store", "sweep", "origins", "index", "resolve", "transfer", "bases", "verify"], 2),
    **dict.fromkeys(["cards", "description", "wanted_base", "remotes", "merge_methods", "recipe_toml"], 2),
    **dict.fromkeys(["signing", "module_groups"], 2),
    **dict.fromkeys(["project"], 2),
    **dict.fromkeys(["known_projects", "trusted_projects"], 2),
    **dict.fromkeys(["engines"], 2),
    # 3 places
    **dict.fromkeys(
        [
            "catalog",
            "refusals",
            "library",
            "incoming",
            "damage",
            "repair",
            "directory",
            "hub",
            "install",
            "new_folder",
            "choosing",
            "finding",
            "default",
        ],
        3,
    ),
    **dict.fromkeys(["audit", "identify", "lineage", "uses", "outdated"], 3),
    **dict.fromkeys(["admission"], 3),
    **dict.fromkeys(["locking"], 3),
    **dict.fromkeys(["locked_builds", "sync", "space"], 3),
    **dict.fromkeys(["session", "project_trust"], 3),
    # 4 weights
    **dict.fromkeys(["lowrank", "randomized", "layouts", "factor_pairs", "factors", "merge", "similarity"], 4),
    **dict.fromkeys(["difference"], 4),
    **dict.fromkeys(["locked_merges", "project_sources"], 4),
    **dict.fromkeys(["recipe", "recipe_parents", "loader", "generation", "bank", "tuning", "fuse", "extract"], 4),
    **dict.fromkeys(["export"], 4),
    **dict.fromkeys(["serving"], 4),
    # 5 faces
    **dict.fromkeys(["cli", "heatmap", "demo"], 5),
    **dict.fromkeys(["vllm_plugin"], 5),
}
HEAVY_AT_MODULE_LEVEL = {"torch": 4, "safetensors": 4, "huggingface_hub": 3}
NEVER_AT_MODULE_LEVEL = {
    "peft",
    "transformers",
    "sqlite_utils",
    "rich",
    "numpy",
    "regex",
    "yaml",
    "matplotlib",
    "cma",
    "bitsandbytes",
    "cryptography",
    "tomlkit",
}
REGISTRY_MAY_IMPORT = 3
LONGEST_FILE_LINES = 450


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports_of(path: Path) -> list[tuple[str, bool, int]]:
    """`(module, at module level, line)` of every import that runs; those under TYPE_CHECKING do not."""
    found: list[tuple[str, bool, int]] = []

    def visit(node: ast.AST, *, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, top, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: imports are absolute"
                names = [child.module or ""]
                if child.module == "adapterhub":
                    names = [f"adapterhub.{alias.name}" for alias in child.names]
                found.extend((name, top, child.lineno) for name in names)
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            visit(child, top=top and not inner)

    visit(ast.parse(path.read_text(encoding="utf-8")), top=True)
    return found


def sources(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.py") if p != PACKAGE / "__init__.py")


def test_every_module_has_a_floor() -> None:
    rooms = {room_of(path) for path in sources(PACKAGE)}

    assert set(FLOORS) == rooms


def test_imports_point_down_the_floors() -> None:
    wrong = []
    for path in sources(PACKAGE):
        for name, _, line in imports_of(path):
            if name.startswith("adapterhub."):
                room = name.split(".")[1]
                if FLOORS[room] > FLOORS[room_of(path)]:
                    wrong.append(f"{path.relative_to(ROOT)}:{line} (floor {FLOORS[room_of(path)]}) imports {name}")

    assert wrong == []


def test_modules_form_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for path in sources(PACKAGE):
        room = room_of(path)
        names = {n.split(".")[1] for n, _, _ in imports_of(path) if n.startswith("adapterhub.")}
        graph.setdefault(room, set()).update(names - {room})
    done: set[str] = set()

    def walk(room: str, trail: tuple[str, ...]) -> None:
        assert room not in trail, f"cycle: {' -> '.join((*trail, room))}"
        if room not in done:
            for other in sorted(graph.get(room, ())):
                walk(other, (*trail, room))
            done.add(room)

    for room in sorted(graph):
        walk(room, ())


def test_heavy_packages_are_imported_where_they_may() -> None:
    wrong = []
    for path in sources(PACKAGE):
        for name, top, line in imports_of(path):
            package = name.partition(".")[0]
            floor = FLOORS[room_of(path)]
            needed = HEAVY_AT_MODULE_LEVEL.get(package, 0)
            if top and (package in NEVER_AT_MODULE_LEVEL or floor < needed or (floor == 5 and needed)):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name} at module level")

    assert wrong == []


def test_adapterhub_never_imports_the_registry_and_the_registry_only_the_lower_floors() -> None:
    above = {room for room, floor in FLOORS.items() if floor > REGISTRY_MAY_IMPORT}
    upward = [p for p in sources(PACKAGE) if any("adapterhub_registry" in n for n, _, _ in imports_of(p))]
    downward = [
        (p, n)
        for p in (ROOT / "registry").rglob("*.py")
        for n, _, _ in imports_of(p)
        if n.startswith("adapterhub.") and n.split(".")[1] in above
    ]

    assert (upward, downward) == ([], [])


def test_only_faces_read_the_environment() -> None:
    readers = set()
    for path in sources(PACKAGE):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}:
                readers.add(room_of(path))

    assert {room for room in readers if FLOORS[room] < 5} == set()


@pytest.mark.parametrize("name", ["torch.load", "pickle", "joblib", "cloudpickle", "eval(", "exec("])
def test_no_file_can_be_run(name: str) -> None:
    code = [
        line for p in sources(PACKAGE) for line in ast.unparse(ast.parse(p.read_text(encoding="utf-8"))).splitlines()
    ]
    calls = [
        line
        for line in code
        if f"import {name}" in line
        or (
            name.endswith(("(", "load"))
            and f"{name.rstrip('(')}(" in line.replace("model.eval(", "").replace(".eval(", "")
        )
    ]

    assert calls == []


def test_files_are_read_in_one_sitting() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for p in [*sources(PACKAGE), *sources(ROOT / "registry")]
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE_LINES
    }

    assert long == {}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list"], ["search", "legal"], ["path", "nothing"], ["gc", "--help"]]
)
def test_quick_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    forbidden = ["torch", "peft", "transformers", "numpy", "sqlite_utils", "huggingface_hub", "rich"]
    (tmp_path / "home").mkdir()
    prepare = "from adapterhub.library.library import Library; from pathlib import Path; Library(Path('home')).catalog.rebuild()"
    subprocess.run([sys.executable, "-c", prepare], cwd=tmp_path, check=True)
    code = (
        "import sys, json, contextlib\n"
        f"sys.argv = ['adapt', *{arguments!r}, *(['--root', 'home'] if '--help' not in {arguments!r} else [])]\n"
        "from adapterhub.cli import main\n"
        "with contextlib.suppress(SystemExit): main()\n"
        f"print(json.dumps([m for m in {forbidden!r} if m in sys.modules]), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert json.loads(done.stderr.strip().splitlines()[-1]) == []


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import adapterhub, sys; print([m for m in ('torch','peft','numpy','click','sqlite3') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert done.stdout.strip() == "[]"
