"""Every command that opens a folder or a file, given hostile ones: a verdict each time, and no harm done.

`CALLS` says for each parameter of the command table that can name something to read how the command is typed.
A parameter that is in neither `CALLS` nor `ELSEWHERE` fails the first test, so a new command comes with its entry.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import pytest

from adapterhub.cli import cli
from adapterhub.core.errors import AdapterHubError
from tests.support.command_line import Adapt
from tests.support.hostile_corpus import MAX_MB, ROOT, bad_inputs, make_base, own_kinds
from tests.support.hostile_kinds import KINDS, good

Kind = Literal["adapter", "base", "file", "project"]
Parameter = tuple[str, str]
"""A command's words and the name of one of its parameters."""

CALLS: dict[Parameter, tuple[Kind, str]] = {
    # {} is the hostile thing, NEW a name that nothing has yet
    ("add", "folders"): ("adapter", "add {} --name NEW --base corpus-base"),
    ("add", "--base"): ("base", "add good --name NEW --base {}"),
    ("alias set", "--project"): ("project", "alias set prod kept==1 --save --project {}"),
    ("audit", "adapters"): ("adapter", "audit {}"),
    ("base add", "place"): ("base", "base add {} --as NEW"),
    ("base compare", "first"): ("base", "base compare {} corpus-base"),
    ("base compare", "second"): ("base", "base compare corpus-base {}"),
    ("base set", "which"): ("base", "base set {} --hub-id acme/NEW"),
    ("base show", "which"): ("base", "base show {}"),
    ("compare", "adapters"): ("adapter", "compare {} ./good"),
    ("compare", "--base"): ("base", "compare kept ./good --base {}"),
    ("doctor", "--project"): ("project", "doctor --project {}"),
    ("export", "adapters"): ("adapter", "export {} --format vllm --base corpus-base -o ./out-NEW"),
    ("export", "--base"): ("base", "export ./good --format merged --base {} -o ./out-NEW"),
    ("export", "--project"): ("project", "export --project {}"),
    ("extract", "--base"): ("base", "extract corpus-base --base {} -o ./out-NEW"),
    ("extract", "tuned"): ("base", "extract {} --base corpus-base -o ./out-NEW"),
    ("fuse", "adapters"): ("adapter", "fuse {} --base corpus-base -o ./out-NEW"),
    ("fuse", "--base"): ("base", "fuse ./good --base {} -o ./out-NEW"),
    ("identify", "paths"): ("adapter", "identify {}"),
    ("info", "--base"): ("base", "info kept --base {}"),
    ("init", "--base"): ("base", "init NEW --base {}"),
    ("init", "folder"): ("project", "init {}"),
    ("install", "--base"): ("base", "install kept --from ./good --base {}"),
    ("install", "--from"): ("adapter", "install NEW --from {} --base corpus-base"),
    ("install", "--project"): ("project", "install NEW --from ./good --save --project {}"),
    ("install", "--requirements"): ("file", "install -r {}"),
    ("key revoke", "file"): ("file", "key revoke NEW {}"),
    ("key trust", "file"): ("file", "key trust NEW {}"),
    ("list", "--base"): ("base", "list --base {}"),
    ("list", "--project"): ("project", "list --project {}"),
    ("lock", "--from"): ("adapter", "lock --offline --project ./project --from {}"),
    ("lock", "--project"): ("project", "lock --offline --project {}"),
    ("merge", "--base"): ("base", "merge kept ./good --base {} -o ./out-NEW"),
    ("merge", "--from"): ("adapter", "merge --recipe recipe.toml --offline -o NEW --from {}"),
    ("merge", "--recipe"): ("file", "merge --recipe {} --offline -o NEW"),
    ("merge", "--tune"): ("file", "merge ./good kept --base corpus-base --tune {} -o ./out-NEW"),
    ("merge", "adapters"): ("adapter", "merge {} ./good -o ./out-NEW"),
    ("port", "adapter"): ("adapter", "port {} --to corpus-base --unproved -o NEW"),
    ("pull", "--base"): ("base", "pull kept ./out-NEW --offline --base {}"),
    ("registry tests", "--trust"): ("file", "registry tests acme --root ./nowhere --trust ann={}"),
    ("resize", "--base"): ("base", "resize kept --rank 2 --base {} -o ./out-NEW"),
    ("resize", "adapter"): ("adapter", "resize {} --rank 2 -o ./out-NEW"),
    ("route", "--base"): ("base", "route hello --base {}"),
    ("route", "--file"): ("file", "route hello --file {}"),
    ("run", "--batch"): ("file", "run kept --base corpus-base --batch {} --out ./out-NEW"),
    ("search", "--base"): ("base", "search --base {}"),
    ("search", "--try"): ("file", "search --base corpus-base --try {}"),
    ("serve", "--deny-file"): ("file", "serve --base corpus-base --python ./nowhere --dry-run --deny-file {}"),
    ("serve", "--route"): ("file", "serve --base corpus-base --python ./nowhere --dry-run --route {}"),
    ("serve", "--sync"): ("file", "serve --engine vllm --base corpus-base --dry-run --sync {}"),
    ("serve", "--tenants"): ("file", "serve --base corpus-base --python ./nowhere --dry-run --tenants {}"),
    ("sync", "--project"): ("project", "sync --project {}"),
    ("contract export", "--tests"): ("file", "contract export kept ./task-NEW --tests {}"),
    ("contract export", "adapter"): ("adapter", "contract export {} ./task-NEW"),
    ("contract record", "--examples"): ("file", "contract record kept --examples {}"),
    ("contract record", "--tests"): ("file", "contract record kept --tests {}"),
    ("contract record", "adapter"): ("adapter", "contract record {} --examples ./nowhere"),
    ("test", "--tests"): ("file", "test kept --tests {}"),
    ("test", "adapters"): ("adapter", "test {} --base corpus-base"),
    ("tree", "--project"): ("project", "tree --project {}"),
    ("remote trust", "folder"): ("project", "remote trust {}"),
    ("remove", "--project"): ("project", "remove kept --save --yes --project {}"),
    ("upgrade", "--from"): ("adapter", "upgrade --offline --project ./project --from {}"),
    ("upgrade", "--project"): ("project", "upgrade --offline --project {}"),
    ("verify", "--base"): ("base", "verify ./good --base {}"),
    ("verify", "adapters"): ("adapter", "verify {}"),
}
ELSEWHERE: dict[Parameter, str] = {
    ("base family", "members"): "names registered bases: a folder that is none is refused",
    ("base pin", "which"): "names a registered base: its record is read, not its folder",
    ("base remove", "alias"): "names a registered base: its record is removed, its folder is not read",
    ("contract export", "--base"): "as `run --base`",
    ("contract record", "--base"): "as `run --base`",
    ("demo", "--wheels"): "a folder of wheels by their pinned digests; test_demo_base.py",
    ("doctor", "--from"): "a place to mend from; test_repair.py",
    ("export", "--gguf"): "as `serve --gguf`",
    ("export", "--llama-server"): "a program of the user's, which is run",
    ("mirror", "--base"): "a filter; both ends are servers",
    ("registry backup", "folder"): "a folder that it writes; tests/registry/test_backup.py",
    ("registry import", "folder"): "every plain file below it comes in; tests/registry/test_filling.py",
    ("registry meaning", "folder"): "a model by its pinned digests; test_meaning_encoder.py",
    ("registry restore", "--head"): "read before a backup is; the test below",
    ("registry restore", "folder"): "a backup; tests/registry/test_restore.py",
    ("registry serve", "--sign-in"): "what is no refusal starts a server; tests/registry/test_sign_in.py",
    ("registry serve", "--secret-file"): "what is no refusal starts a server; the test below",
    ("run", "--base"): "transformers loads it; the base is trusted",
    ("test", "--base"): "as `run --base`",
    ("test", "--on"): "as `run --base`",
    ("test", "--task"): "a program of the user's reads it; test_runners.py",
    ("serve", "--base"): "an engine loads it; the base is trusted",
    ("serve", "--gguf"): "read as `base compare` reads it, before an engine loads it; test_serve_copies.py",
    ("serve", "--llama-server"): "a program of the user's, which is run",
    ("serve", "--python"): "a program of the user's, which is run",
    ("ui", "--project"): "as `list --project`; what is no refusal starts a server",
}
WRITTEN = {
    "-o", "--plot", "--out", "--log", "--to", "--audit-log", "--junit", "--statement", "--detached",
    "--emit", "--image",
}  # fmt: skip
"""Options that name what is made, and `pull DIR`; what lies there is the matter of the tests of `sync` and `pull`."""

CODES = {0, 3} | {kind.exit_code for kind in AdapterHubError.__subclasses__()}
ONE_WAY_IN = {"--from", "--base"}
"""Options that all commands give to one function; each gets every seventh of the hostile things."""
TESTED_WHOLE = {("add", "folders"), ("install", "--from"), ("verify", "adapters")}
"""Ways in that tests/trust/test_hostile.py sends the whole corpus through."""
OUTSIDE = "outside-secret-3f1c"


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        yield " ".join((*words, name)), command


def names_something(parameter: click.Parameter) -> bool:
    words = ("FOLDER", "DIR", "FILE", "PATH")
    return parameter.type.name in ("path", "directory", "file", "base") or any(
        word in (parameter.metavar or "") for word in words
    )


def test_every_parameter_that_names_a_folder_or_a_file_is_in_the_table() -> None:
    found = (
        {
            (command, parameter.opts[0])
            for command, made in commands(cli)
            for parameter in made.params
            if names_something(parameter) and parameter.opts[0] not in WRITTEN
        }
        - {(command, "--root") for command, _ in commands(cli)}
        - {("pull", "folder"), ("contract export", "folder")}
    )

    assert found == CALLS.keys() | ELSEWHERE.keys()


# ---------------------------------------------------------------- what is hostile
def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def deep(path: Path) -> None:
    path.write_text("[" * 200_000)


def deep_table(path: Path) -> None:
    path.write_text("a = " + "[" * 100_000 + "]" * 100_000)


def twice(path: Path) -> None:
    path.write_text('{"architectures": 1, "architectures": 2}')


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(400 << 20)


def folder(path: Path) -> None:
    path.mkdir()


def steering(path: Path) -> None:
    path.write_text('\x1b[2J\u202e = "\x07"\n{"\x1b[2J": "\u202e"}')


def junk(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 64)


def looping(path: Path) -> None:
    path.symlink_to(path.name)


FILES: list[Callable[[Path], None]] = [
    fifo, endless, deep, deep_table, twice, sparse, folder, steering, junk, looping,
]  # fmt: skip
BESIDE = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
)
BASE_KINDS = [(name, make) for name in BESIDE for make in (fifo, endless, deep, twice, sparse)] + [
    ("model.safetensors", make) for make in (fifo, endless, deep, sparse)
]
PROJECT_KINDS = [
    (name, make)
    for name in ("adapters.toml", "adapters.lock")
    for make in (fifo, endless, deep_table, sparse, folder, steering, junk, looping)
]


@dataclass(frozen=True)
class World:
    """Where the commands are typed: a library with the adapter `kept`, a good adapter, and the hostile things."""

    folder: Path
    things: dict[Kind, list[tuple[str, str]]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("commands")
    made = place / "world"
    for name in ("tmp", "user", "project"):
        (made / name).mkdir(parents=True)
    base = make_base(made / "base")
    good(made / "good")
    (made / "project" / "adapters.toml").write_text('[adapters]\nkept = "*"\n')
    (made / "recipe.toml").write_text('format = 1\nmethod = "cat"\n[[inputs]]\nspec = "absent"\nweight = 1\n')
    things: dict[Kind, list[tuple[str, str]]] = {"adapter": [], "base": [], "file": [], "project": []}
    cases = [*bad_inputs(place / "corpus"), *own_kinds(place / "own")]
    things["adapter"] = [(case.id, str(case.path)) for case in cases if case.id not in AT_THE_LIMIT]
    for name, make in BASE_KINDS:
        folder_ = place / "bases" / f"{name}-{make.__name__}"
        shutil.copytree(base, folder_)
        (folder_ / name).unlink(missing_ok=True)
        if name.endswith("index.json"):
            (folder_ / "model.safetensors").unlink()
        make(folder_ / name)
        things["base"].append((folder_.name, str(folder_)))
    for name, make in PROJECT_KINDS:
        folder_ = place / "projects" / f"{name}-{make.__name__}"
        folder_.mkdir(parents=True)
        (folder_ / "adapters.toml").write_text('[adapters]\nkept = "*"\n')
        (folder_ / name).unlink(missing_ok=True)
        make(folder_ / name)
        things["project"].append((folder_.name, str(folder_)))
    (place / "files").mkdir()
    for make in FILES:
        make(place / "files" / make.__name__)
        things["file"].append((make.__name__, str(place / "files" / make.__name__)))
    things["file"] += [("device", "/dev/zero"), ("absent", str(place / "files" / "absent"))]
    yield World(made, things)
    shutil.rmtree(place, ignore_errors=True)


AT_THE_LIMIT = {f"X{n:02}" for n, kind in enumerate(KINDS, 1) if kind.why.startswith("32,768 pairs")}
"""As many tensors as are allowed, which is seconds of work for each command; tests/trust/test_hostile.py has them."""


def typed(world: World, kind: Kind, *, step: int) -> Iterator[dict[str, Any]]:
    """Each way in with one hostile thing in `step`: the next way in gets the next ones, so each thing is tried."""
    number = 0
    ways = [(parameter, line) for parameter, (kinds, line) in CALLS.items() if kinds == kind]
    for first, (parameter, line) in enumerate(ways):
        things = world.things[kind]
        if parameter in TESTED_WHOLE or parameter[1] in ONE_WAY_IN:
            things = things[first % 7 :: 7]
        else:
            things = things[first % step :: step]
        for name, path in things:
            number += 1
            words = [word.replace("{}", path).replace("NEW", f"{kind}{number}") for word in shlex.split(line)]
            yield {"id": f"{' '.join(parameter)} {name}", "arguments": words}


def run(world: World, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    warm = [
        ["base", "add", "./base", "--as", "corpus-base"],
        ["add", "./good", "--name", "kept", "--base", "corpus-base"],
        *([word.replace("{}", "./good").replace("NEW", f"warm{n}") for word in shlex.split(line)]
          for n, (kind, line) in enumerate(CALLS.values()) if kind == "adapter"),
    ]  # fmt: skip
    job = world.folder / "job.json"
    job.write_text(json.dumps({"folder": str(world.folder), "warm": warm, "runs": runs}))
    surroundings = os.environ | {
        "TMPDIR": str(world.folder / "tmp"), "HOME": str(world.folder / "user"), "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(world.folder / "user"), "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "registry")]),
        "PYTHONDONTWRITEBYTECODE": "1",  # the first import of a module would count as a write
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.attacks.command_child", str(job)]
    done = subprocess.run(
        command,
        env=surroundings,
        cwd=world.folder,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def faults(told: dict[str, Any]) -> Iterator[str]:
    if told["exit_code"] not in CODES:
        yield f"exit code {told['exit_code']}: {told['stderr'][:300]}"
    if "Traceback" in told["stderr"] or "a bug in" in told["stderr"]:
        yield f"no verdict: {told['stderr'][:300]}"
    if told["exit_code"] and not told["stderr"] + told["stdout"]:
        yield "refused without a word"
    if OUTSIDE in told["stdout"] + told["stderr"]:
        yield "prints what lies outside"
    if not all(c.isprintable() or c in "\n\t" for c in told["stdout"] + told["stderr"]):
        yield "control characters on the terminal"
    if told["mb"] > MAX_MB:
        yield f"took {told['mb']:.0f} MB"
    if told["seen"]:
        yield f"{told['seen']}"


@pytest.fixture(scope="module")
def told(world: World, amount: Callable[[int, int], int]) -> dict[str, dict[str, Any]]:
    """What each command did, by its id. One process types all: to import what they need takes it seconds."""
    runs = [one for kind in world.things for one in typed(world, kind, step=amount(16, 1))]
    found = run(world, runs)
    assert [one["id"] for one in found] == [one["id"] for one in runs]
    assert list((world.folder / "tmp").iterdir()) == []
    return {one["id"]: one for one in found}


@pytest.mark.parametrize("kind", ["adapter", "base", "file", "project"])
def test_every_command_ends_with_a_verdict_on_hostile_input(
    kind: Kind, world: World, told: dict[str, dict[str, Any]], amount: Callable[[int, int], int]
) -> None:
    runs = list(typed(world, kind, step=amount(16, 1)))

    assert [f"{one['id']}: {fault}" for one in runs for fault in faults(told[one["id"]])] == []
    assert runs


@pytest.mark.parametrize("make", [fifo, endless, sparse, folder, looping])
def test_a_head_of_a_log_is_a_plain_file(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "head")

    done = Adapt(tmp_path)("registry", "restore", "nothing", "--root", "registry", "--head", "head")

    assert done.exit_code in {2, 10}
    assert not (tmp_path / "registry").exists()


@pytest.mark.parametrize("make", [fifo, endless, sparse, folder, looping])
def test_a_secret_file_of_a_registry_is_a_plain_file(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "secret")

    said = Adapt(tmp_path).fails(2, "registry", "serve", "--root", "registry", "--secret-file", "secret", "--port", 0)

    assert "secret" in said
