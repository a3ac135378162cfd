"""The core: every command of a package manager runs without torch, transformers, PEFT and numpy; what needs them says so.

The commands run in processes that do not find these packages. What the metadata ask for is read off them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

import pytest
import tomlkit
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from adapterhub.core.extras import EXTRAS
from tests.support.tiny import make_adapter, make_base

ROOT = Path(__file__).resolve().parent.parent.parent
HEAVY = ("torch", "transformers", "peft", "numpy")
WITHOUT = """
import os, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in os.environ["TESTS_WITHOUT"].split()
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and two folders as PEFT leaves them."""
    folder = tmp_path_factory.mktemp("core")
    make_base(folder / "base")
    make_adapter(folder / "legal-qa")
    make_adapter(folder / "summarize", seed=1)
    return folder


@pytest.fixture(scope="module")
def environment(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """For a process that does not find the heavy packages, nor those of the extras that bring them."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(WITHOUT)
    kept = {*EXTRAS["registry"], *EXTRAS["scale"]}
    hidden = {name for names in EXTRAS.values() for name in names} - kept
    path = os.pathsep.join(map(str, (folder, ROOT, ROOT / "registry")))
    here = {"ADAPTERHUB_HOME": str(world / "home"), "HF_HOME": str(folder / "hf"), "NO_COLOR": "1"}
    return os.environ | here | {"PYTHONPATH": path, "TESTS_WITHOUT": " ".join(hidden), "HF_HUB_OFFLINE": "0"}


@pytest.fixture(scope="module")
def adapt(world: Path, environment: Mapping[str, str]) -> Run:
    """`adapt …` in `world`, or in the folder `at` of it, in a process of its own."""

    def run(*arguments: str, at: str = ".", code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "adapterhub.cli", *arguments]
        done = subprocess.run(
            command, cwd=world / at, env={**environment, **more}, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, f"adapt {arguments}: {done.stdout}{done.stderr}"
        return done

    run("base", "add", "./base", "--as", "base-7b")
    for name in ("legal-qa", "summarize"):
        run("add", f"./{name}", "--name", name, "--base", "base-7b", "--task", "legal")
    return run


def python(code: str, environment: Mapping[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_packages_are_hidden_as_if_not_installed(environment: Mapping[str, str]) -> None:
    code = (
        "from importlib.util import find_spec\n"
        f"for name in {HEAVY!r}:\n"
        "    try: __import__(name)\n"
        "    except ModuleNotFoundError as error: print(find_spec(name), error.name)\n"
    )

    assert python(code, environment).splitlines() == [f"None {name}" for name in HEAVY]


CORE = """
list
search legal --base base-7b
info legal-qa
info legal-qa --path
verify --all
verify legal-qa --engine vllm
audit
identify ./legal-qa
tree
tree legal-qa --invert
cache
cache clean --yes
base list
base show base-7b
base compare base-7b ./base
remote list
doctor --offline --rebuild-index
doctor --repair
key new ann --unencrypted
key sign legal-qa --key ann
push legal-qa --to ./published
pull legal-qa@base-7b ./pulled
install legal-qa@base-7b --from ./published
export
help completion bash
merge --methods
registry --help
"""


IN_ONE_PROCESS = """
import json, sys
from pathlib import Path
from tests.support.command_line import Adapt

adapt = Adapt(Path.cwd())
for line in json.load(sys.stdin):
    done = adapt(*line.split())
    print(json.dumps([line, done.exit_code, done.stderr]))
"""


def typed(lines: list[str], world: Path, environment: Mapping[str, str]) -> dict[str, tuple[int, str]]:
    """Exit code and complaints of each command, typed one after the other in one process."""
    done = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS], env=environment, cwd=world, check=True,
        input=json.dumps(lines), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return {line: (code, said) for line, code, said in map(json.loads, done.stdout.splitlines())}


def test_the_commands_of_the_core_run_without_torch(adapt: Run, world: Path, environment: Mapping[str, str]) -> None:
    lines = CORE.strip().splitlines()

    found = typed(lines, world, environment)

    assert {line: told for line, told in found.items() if told[0] != 0} == {}
    assert list(found) == lines


def test_a_project_is_locked_and_synced_without_torch(adapt: Run, world: Path) -> None:
    (world / "project").mkdir()
    adapt("init", "--base", "base-7b", at="project")
    adapt("install", "--save", "legal-qa>=1.0,<2", at="project")
    adapt("add", "../summarize", "--name", "spare", "--base", "base-7b", at="project")
    adapt("install", "--save", "spare", at="project")
    adapt("lock", at="project")
    adapt("sync", at="project")
    shutil.rmtree(world / "project/adapters/legal-qa")

    adapt("sync", "--frozen", "--offline", at="project")
    for line in ("upgrade --check", "upgrade", "tree", "tree legal-qa --invert", "uninstall spare --save --yes"):
        adapt(*line.split(), at="project")


@contextlib.contextmanager
def registry(root: Path, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """URL and token of a registry that serves without the heavy packages."""
    command = [sys.executable, "-m", "adapterhub_registry", "--root", str(root), "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        try:
            url, token = (line.rpartition(": ")[2].strip() for line in lines)
            yield url, token
        finally:
            process.terminate()


def test_a_registry_serves_and_its_clients_run_without_torch(
    adapt: Run, world: Path, environment: Mapping[str, str]
) -> None:
    with registry(world / "registry", environment) as (url, token):
        server = ("--remote", url)
        adapt("push", "legal-qa", "--to", "acme/legal-qa", *server, ADAPTERHUB_TOKEN=token)
        adapt("search", "legal", *server)
        adapt("info", "acme/legal-qa", *server)
        second = {"ADAPTERHUB_HOME": str(world / "second")}
        adapt("base", "add", "./base", "--as", "base-7b", **second)
        adapt("install", "acme/legal-qa@base-7b", *server, **second)
        found = adapt("list", **second)

    assert "legal-qa" in found.stdout


WEIGHTS = """
merge legal-qa summarize -o both
compare legal-qa summarize
compare --diff legal-qa summarize
resize legal-qa --rank 2
extract ./base --base base-7b --rank 2 -o lora
fuse legal-qa -o ./fused
run legal-qa@base-7b prompt
export legal-qa@base-7b --format peft -o ./peft
"""
OPTIONS = """
export export legal-qa@base-7b --format gguf -o ./legal-qa.gguf
plot compare legal-qa summarize --plot picture.png
tune merge legal-qa summarize --tune examples.jsonl -o both
quantized run legal-qa@base-7b prompt --load-in 4bit
demo demo
"""


def test_a_command_that_needs_an_extra_names_it_and_writes_nothing(
    adapt: Run, world: Path, environment: Mapping[str, str]
) -> None:
    extras = dict.fromkeys(WEIGHTS.strip().splitlines(), "weights")
    extras |= {line: extra for extra, line in (text.split(" ", 1) for text in OPTIONS.strip().splitlines())}
    before = sorted(world.rglob("*"))

    found = typed(list(extras), world, environment)

    assert found.keys() == extras.keys()
    for line, (code, said) in found.items():
        error, hint = said.strip().splitlines()[-2:]
        assert (line, code) == (line, 2)
        assert "`torch`" in error, line
        assert error.endswith("not installed"), line
        assert f"`pip install 'adapterhub[{extras[line]}]'`" in hint, line
    assert sorted(world.rglob("*")) == before


MERGE = """
[merges.both]
inputs = [{ adapter = "legal-qa", weight = 0.5 }, { adapter = "summarize", weight = 0.5 }]
"""


def test_a_project_with_a_merge_is_refused_and_left_as_it_was(adapt: Run, world: Path) -> None:
    folder = world / "merging"
    folder.mkdir()
    adapt("init", "--base", "base-7b", at="merging")
    for name in ("legal-qa", "summarize"):
        adapt("install", "--save", f"{name}>=1.0", at="merging")
    text = (folder / "adapters.toml").read_text()
    lines = (
        '[merges.both]\ninputs = [{ adapter = "legal-qa", weight = 0.5 }, { adapter = "summarize", weight = 0.5 }]\n'
    )
    (folder / "adapters.toml").write_text(f"{text}\n{lines}")
    before = (folder / "adapters.lock").read_bytes()

    done = adapt("lock", code=2, at="merging")

    assert "making the merge `both` needs the package `torch`" in done.stderr
    assert "adapterhub[weights]" in done.stderr
    assert (folder / "adapters.lock").read_bytes() == before


def test_a_merge_is_synced_where_it_is_and_refused_where_it_would_be_made(adapt: Run, world: Path) -> None:
    folder = world / "merged"
    folder.mkdir()
    adapt("init", "--base", "base-7b", at="merged")
    for name in ("legal-qa", "summarize"):
        adapt("push", name, "--to", "../published", at="merged")
        adapt("install", "--save", f"{name}>=1.0", at="merged")
    with (folder / "adapters.toml").open("a") as project:
        project.write(f'[remotes.ours]\npath = "../published"\n{MERGE}')
    adapt("lock", "--upgrade", at="merged", TESTS_WITHOUT="")
    adapt("base", "add", "./base", "--as", "base-7b", ADAPTERHUB_HOME=str(world / "third"))

    adapt("sync", "--frozen", at="merged")
    shutil.rmtree(folder / "adapters")
    done = adapt("sync", "--frozen", at="merged", code=2, ADAPTERHUB_HOME=str(world / "third"))

    assert "making the merge `both` needs the package `torch`" in done.stderr
    assert not (folder / "adapters" / "both").exists()


@pytest.mark.parametrize(
    "name",
    [
        "AdapterBank", "Attached", "MergeInput", "merge_adapters", "attach(None, 'x')", "Library('x').attach(type('Module', (), {})(), 'x')",
        "Library('x').merge(['a', 'b'])", "Library('x').compare('a', 'b')",
    ],
)  # fmt: skip
def test_a_function_that_needs_torch_names_the_extra(environment: Mapping[str, str], name: str) -> None:
    code = (
        "import adapterhub\n"
        f"try: adapterhub.{name}\n"
        "except adapterhub.AdapterHubError as error: print(type(error).__name__, error.exit_code, error.hint)\n"
    )

    assert python(code, environment) == "MissingExtra 2 `pip install 'adapterhub[weights]'` installs it\n"


@pytest.mark.parametrize(
    ("package", "place"),
    [("psycopg", "--database postgresql://registry@127.0.0.1:9/db"), ("obstore", "--blobs s3://adapters")],
)
def test_a_registry_on_several_servers_names_its_extra(adapt: Run, package: str, place: str) -> None:
    serve = ["registry", "serve", "--root", "./empty", "--port", "0"]
    done = adapt(*serve, *place.split(), code=2, TESTS_WITHOUT=package)

    assert f"needs the package `{package}`" in done.stderr
    assert "`pip install 'adapterhub[scale]'` installs it" in done.stderr


@pytest.mark.parametrize("typed", [("registry", "--help"), ("help", "registry"), ("registry", "serve", "--help")])
def test_the_help_of_a_command_without_its_extra_says_what_it_needs(adapt: Run, typed: tuple[str, ...]) -> None:
    done = adapt(*typed, TESTS_WITHOUT="sqlalchemy")

    assert "Run and administer a self-hosted registry." in done.stdout
    assert "`pip install 'adapterhub[registry]'` installs it" in " ".join(done.stdout.split())
    assert "`sqlalchemy`" in adapt("registry", "serve", "--root", "x", code=2, TESTS_WITHOUT="sqlalchemy").stderr


def test_an_import_that_no_extra_would_mend_stays_what_it_is(environment: Mapping[str, str]) -> None:
    code = (
        "from adapterhub.core.extras import extra_named\n"
        "try:\n"
        "    with extra_named('this'): import no_such_module\n"
        "except ModuleNotFoundError as error: print(error.name)\n"
    )

    assert python(code, environment) == "no_such_module\n"


def test_comparing_updates_needs_numpy_and_adding_does_not(adapt: Run) -> None:
    done = adapt("compare", "legal-qa", code=2)

    assert "`compare` of one adapter needs the package `numpy`" in done.stderr
    assert "`pip install 'adapterhub[find]'` installs it" in done.stderr
    assert "W_COPY" not in adapt("audit", "--offline").stdout


def test_doctor_shows_a_missing_extra_as_no_failure(adapt: Run) -> None:
    lines = dict(line.split("\t", 1) for line in adapt("doctor", "--offline").stdout.splitlines())

    assert lines["extra weights"].startswith("skipped\twithout torch, transformers, peft, numpy; `pip install")
    assert lines["extra registry"] == "ok\tinstalled"


# ------------------------------------------------------------ metadata
PROJECT = tomlkit.parse((ROOT / "pyproject.toml").read_text(encoding="utf-8")).unwrap()["project"]


def requirements(name: str, extra: str) -> list[Requirement]:
    """What a distribution requires with one of its extras, or with none; of ours, as the file says now."""
    if name == "adapterhub":
        return [Requirement(text) for text in PROJECT["optional-dependencies"].get(extra, PROJECT["dependencies"])]
    try:
        declared = [Requirement(text) for text in metadata.requires(name) or ()]
    except metadata.PackageNotFoundError:  # for another system
        return []
    return [one for one in declared if one.marker is None or one.marker.evaluate({"extra": extra})]


def closure(*extras: str) -> set[str]:
    """The distributions that `adapterhub[extras]` brings, by name."""
    todo = [("adapterhub", extra) for extra in ("", *extras)]
    done: set[tuple[str, str]] = set()
    while todo:
        end = todo.pop()
        if end not in done:
            done.add(end)
            for one in requirements(*end):
                todo += [(canonicalize_name(one.name), extra) for extra in ("", *one.extras)]
    return {name for name, _ in done}


@pytest.mark.parametrize("extras", [(), ("registry",), ("registry", "scale")])
def test_the_core_and_the_registry_bring_no_heavy_package(extras: tuple[str, ...]) -> None:
    brought = closure(*extras)

    computes = {"numpy"} if extras else set()  # the figures of weights that the pages show
    assert brought & {*HEAVY, "accelerate", "tokenizers"} == computes
    assert {"click", "huggingface-hub", "safetensors", "sqlite-utils", "rich"} <= brought


@pytest.mark.slow
def test_each_extra_brings_the_modules_that_it_is_named_for() -> None:
    distributions = metadata.packages_distributions()
    for extra, modules in EXTRAS.items():
        brought = closure(extra)
        for module in modules:
            owners = {canonicalize_name(name) for name in distributions.get(module, [module])}
            assert brought & owners, f"`{extra}` does not bring `{module}`"


@pytest.mark.slow
def test_all_is_every_extra_of_users() -> None:
    extras = set(PROJECT["optional-dependencies"])

    assert extras - {"all", "dev", "docs", "fast", "mutants", "release"} == set(EXTRAS)
    assert closure("all") == closure(*EXTRAS)
    assert closure("all") <= closure("dev")
