"""The folders are the architecture (CONTRIBUTING.md): read off the tree and the imports."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.library.library import Library

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "adapterhub"

# The wings, lowest first. Those of one row stand on one floor and do not see each other.
FLOORS = [
    ["core"],
    ["formats"],
    ["trust", "pages"],
    ["library"],
    ["distribution"],
    ["weights", "live"],
    ["projects", "inference"],
    ["api"],
    ["cli", "vllm_plugin"],
]
FLOOR = {wing: floor for floor, wings in enumerate(FLOORS) for wing in wings}
FACES = {"api", "cli", "vllm_plugin"}
MAY_IMPORT_AT_MODULE_LEVEL = {
    "torch": {"weights", "inference"},
    "safetensors": {"weights", "inference"},
    "huggingface_hub": {"distribution"},
}
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
NUMPY_ALONE = {
    PACKAGE / "formats" / "derived",
    PACKAGE / "formats" / "meaning",
    PACKAGE / "formats" / "base" / "quantised",
    PACKAGE / "formats" / "base" / "quantised" / "formats",
    PACKAGE / "formats" / "base" / "quantised" / "ggml",
}
TRAINING = PACKAGE / "api" / "callbacks"  # its class derives from one of transformers, and only a training imports it
THE_REGISTRY_IMPORTS = {"core", "formats", "pages"}
MOST_COMMANDS, MOST_OPTION_SLOTS = 93, 500
LONGEST_FILE_LINES = 800  # a file is a subject; at 450, one in six was cut for its length only
MOST_IN_A_FOLDER = 16
LISTED_FOLDERS = {
    PACKAGE / "weights" / "merge" / "methods",  # one file a method
    ROOT / "registry" / "adapterhub_registry" / "database" / "migrations" / "versions",  # one file a schema
}


def wing_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def module_of(path: Path) -> str:
    """The dotted name; a package stands for its `__init__`."""
    base = ROOT / "registry" if (ROOT / "registry") in path.parents else ROOT
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def plain_code(path: Path) -> list[str]:
    """The lines of the code, without comments."""
    return ast.unparse(parsed(path)).splitlines()


def statements_in(node: ast.AST) -> Iterator[ast.AST]:
    """The statements of a block, and the parts of it that hold others; no expression, of which a file has most."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        yield from getattr(node, name, ())


@functools.cache
def imports_of(path: Path) -> list[tuple[str, bool, int]]:
    """`(module, at module level, line)` of every import that runs; those under TYPE_CHECKING do not."""
    found: list[tuple[str, bool, int]] = []

    def visit(node: ast.AST, *, top: bool) -> None:
        for child in statements_in(node):
            if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, top, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: imports are absolute"
                names = [child.module or ""]
                if child.module and child.module.startswith("adapterhub"):  # a module that is imported by its name
                    names = [
                        inner if (inner := f"{child.module}.{alias.name}") in MODULES else child.module
                        for alias in child.names
                    ]
                found.extend((name, top, child.lineno) for name in names)
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            visit(child, top=top and not inner)

    visit(parsed(path), top=True)
    return found


PACKAGES = [PACKAGE, ROOT / "registry" / "adapterhub_registry"]
MODULES = {module_of(path): path for package in PACKAGES for path in package.rglob("*.py")}


def sources(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.py") if p != PACKAGE / "__init__.py")


@functools.cache
def own_imports(path: Path) -> list[tuple[str, int]]:
    """Modules of this project that a file imports, and where."""
    return [(name, line) for name, _, line in imports_of(path) if name in MODULES and name != "adapterhub"]


def folders() -> list[Path]:
    return sorted({path.parent for path in MODULES.values()})


def test_a_folder_is_taken_in_at_a_glance() -> None:
    entries = [path for path in PACKAGE.iterdir() if path.name not in {"__pycache__", "py.typed"}]
    crowded = {
        str(folder.relative_to(ROOT)): count
        for folder in folders()
        if folder not in LISTED_FOLDERS
        and (count := sum(path.name != "__init__.py" for path in folder.glob("*.py"))) > MOST_IN_A_FOLDER
    }

    assert len(entries) <= MOST_IN_A_FOLDER
    assert crowded == {}


def test_every_wing_has_a_floor_and_says_what_belongs_there() -> None:
    wings = {path.parent.name: path for path in PACKAGE.glob("*/__init__.py")}
    said = {wing: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for wing, path in wings.items()}

    assert set(FLOOR) == set(wings)
    assert [wing for wing, text in said.items() if text.count(".") < 2] == []


def test_a_wing_costs_nothing_to_import() -> None:
    full = [
        wing
        for wing in set(FLOOR) - FACES
        if len(ast.parse((PACKAGE / wing / "__init__.py").read_text(encoding="utf-8")).body) > 1
    ]

    assert full == []


def test_imports_point_down_the_floors() -> None:
    wrong = []
    for path in sources(PACKAGE):
        if path.parent == PACKAGE:
            continue
        own = wing_of(path)
        for name, line in own_imports(path):
            wing = name.split(".")[1]
            if name.startswith("adapterhub.") and wing != own and FLOOR.get(wing, len(FLOORS)) >= FLOOR[own]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")

    assert wrong == []


def test_no_folder_has_a_circle() -> None:
    """Between the children of each folder, files and folders alike; what runs only for types does not count."""
    graphs: dict[str, dict[str, set[str]]] = {}
    for module, path in MODULES.items():
        if path == PACKAGE / "__init__.py":
            continue
        ours = [*module.split("."), *(["__init__"] if path.name == "__init__.py" else [])]
        for name, _ in own_imports(path):
            theirs = [*name.split("."), *(["__init__"] if MODULES[name].name == "__init__.py" else [])]
            shared = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
            if shared is not None:
                graph = graphs.setdefault(".".join(ours[:shared]), {})
                graph.setdefault(ours[shared], set()).add(theirs[shared])

    circles = []
    for graph in graphs.values():
        done: set[str] = set()

        def walk(child: str, trail: tuple[str, ...], graph: dict[str, set[str]] = graph, done: set[str] = done) -> None:
            if child in trail:
                circles.append(f"{' -> '.join((*trail[trail.index(child) :], child))}")
                return
            if child not in done:
                for other in sorted(graph.get(child, ())):
                    walk(other, (*trail, child))
                done.add(child)

        for child in sorted(graph):
            walk(child, ())

    assert circles == []


def test_private_modules_stay_in_their_folder() -> None:
    wrong = []
    for path in MODULES.values():
        for name, line in own_imports(path):
            leaf = name.rpartition(".")[2]
            if leaf.startswith("_") and not leaf.endswith("__") and path.parent != MODULES[name].parent:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")

    assert wrong == []


def test_heavy_packages_are_imported_where_they_may() -> None:
    wrong = []
    for path in sources(PACKAGE):
        for name, top, line in imports_of(path):
            package = name.partition(".")[0]
            wings = MAY_IMPORT_AT_MODULE_LEVEL.get(package)
            if (package == "numpy" and path.parent in NUMPY_ALONE) or (
                package == "transformers" and path.parent == TRAINING
            ):
                continue
            if top and (package in NEVER_AT_MODULE_LEVEL or (wings is not None and wing_of(path) not in wings)):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name} at module level")

    assert wrong == []


def test_adapterhub_never_imports_the_registry_and_the_registry_only_the_lowest_wings() -> None:
    upward = [p for p in sources(PACKAGE) if any("adapterhub_registry" in n for n, _, _ in imports_of(p))]
    downward = [
        (str(p.relative_to(ROOT)), n)
        for p in (ROOT / "registry").rglob("*.py")
        for n, _, _ in imports_of(p)
        if n.startswith("adapterhub.") and n.split(".")[1] not in THE_REGISTRY_IMPORTS
    ]

    assert (upward, downward) == ([], [])


def test_only_faces_and_the_front_door_read_the_environment() -> None:
    readers = set()
    for path in sources(PACKAGE):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(parsed(path)) if "environ" in source or "getenv" in source else ():
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}:
                readers.add(wing_of(path))

    assert readers - FACES == set()


@pytest.mark.parametrize("name", ["torch.load", "pickle", "joblib", "cloudpickle", "eval(", "exec("])
def test_no_file_can_be_run(name: str) -> None:
    calls = [
        line
        for path in sources(PACKAGE)
        if name.rpartition(".")[2].rstrip("(") in path.read_text(encoding="utf-8")
        for line in plain_code(path)
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


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with an index."""
    home = tmp_path_factory.mktemp("home")
    Library(home).catalog.rebuild()
    return home


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["list"],
        ["search", "legal"],
        ["search", "legal", "questions"],
        ["path", "nothing"],
        ["cache", "clean", "--help"],
    ],
)
def test_quick_commands_import_nothing_heavy(arguments: list[str], home: Path) -> None:
    forbidden = ["torch", "peft", "transformers", "numpy", "sqlite_utils", "huggingface_hub", "rich"]
    code = (
        "import sys, json, contextlib\n"
        f"sys.argv = ['adapt', *{arguments!r}, *(['--root', {str(home)!r}] if '--help' not in {arguments!r} else [])]\n"
        "from adapterhub.cli import main\n"
        "with contextlib.suppress(SystemExit): main()\n"
        f"print(json.dumps([m for m in {forbidden!r} if m in sys.modules]), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=home.parent, capture_output=True, text=True, check=True)

    assert json.loads(done.stderr.strip().splitlines()[-1]) == []


def test_the_python_interface_imports_little_more_than_the_library_below_it() -> None:
    code = (
        "import sys, adapterhub.library.library, adapterhub.projects.session; before = set(sys.modules)\n"
        "import adapterhub.api.library; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    more = [name for name in done.stdout.split() if name.startswith("adapterhub.")]
    works = ("api.steps", "api.pages", "distribution", "projects", "weights", "inference")
    assert [name for name in more if name.startswith(tuple(f"adapterhub.{wing}" for wing in works))] == []
    assert "adapterhub.api.library" in more


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import adapterhub, sys; print([m for m in ('torch','peft','numpy','click','sqlite3') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert done.stdout.strip() == "[]"


def test_the_commands_stay_few_and_each_only_calls_methods() -> None:
    from adapterhub.cli import COMMANDS
    from tests.measure_house import commands

    every = list(commands())

    assert len(COMMANDS) <= 41
    assert len(every) <= MOST_COMMANDS
    assert sum(one.slots for one in every) <= MOST_OPTION_SLOTS
    assert [one.words for one in every if one.is_a_verb and not one.methods] == []
