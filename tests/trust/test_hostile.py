"""Hostile adapters through `add`, `install`, `verify` and `attach`: the right verdict, in time, and no harm done."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bad_inputs import SECRET
from tests.core.test_bad_inputs import OTHER_CODES
from tests.support.command_line import Adapt
from tests.support.hostile_corpus import MAX_MB, MAX_S, ROOT, Case, as_build, bad_inputs, make_base, own_kinds, run
from tests.support.hostile_kinds import KINDS, good, sparse
from tests.support.programs import needs_strace

AT_THE_LIMIT = {f"X{n:02}" for n, kind in enumerate(KINDS, 1) if kind.why.startswith("32,768 pairs")}
"""As many tensors as are allowed: real work, for which the hard line of 5 s holds."""
HARD_LINE_S = 5.0
VERBS = ("add", "install", "builds", "verify", "attach")
SAMPLED = ("install", "builds", "verify", "attach")
"""They judge with the code of `add`, which gets every case; each gets one case in four, neighbours other ones, unless
`--exhaustive` is given. `tests/core/test_bad_inputs.py` has every case of the corpus verified."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Removed at the end: a hundred thousand small files are not left for the next run to clear away."""
    folder = tmp_path_factory.mktemp("hostile")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def base(place: Path) -> Path:
    return make_base(place / "base")


@pytest.fixture(scope="module")
def cases(place: Path) -> list[Case]:
    return [*bad_inputs(place / "corpus"), *own_kinds(place / "own")]


def tree(folder: Path, but: Path) -> list[str]:
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(parent, name) != but]
        found += [str(Path(parent, name)) for name in (*folders, *files)]
    return sorted(found)


@pytest.fixture(scope="module")
def told(
    request: pytest.FixtureRequest, cases: list[Case], base: Path, place: Path, amount: Callable[[int, int], int]
) -> tuple[str, dict[str, dict[str, Any]]]:
    verb: str = request.param
    paths = [(case.id, case.path) for case in cases]
    if verb == "builds":
        paths = [(case.id, as_build(case, place / "builds")) for case in cases if case.path.is_dir()]
    if verb in SAMPLED:
        paths = paths[amount(SAMPLED.index(verb), 0) :: amount(4, 1)]
    folder = place / f"run-{verb}"
    before = tree(place, folder)

    found = run("install" if verb == "builds" else verb, paths, folder, base, add_after_each=amount(5, 1))

    assert tree(place, folder) == before  # nothing written beside the library, by any case
    assert {p.name for p in folder.iterdir()} - {"home", "job.json", "good", "tmp", "user"} == set()
    assert list((folder / "tmp").iterdir()) == []
    held = [p for p in (folder / "home").rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
    assert held == []
    return verb, found


@pytest.mark.parametrize("told", VERBS, indirect=True)
def test_every_hostile_adapter_gets_its_verdict_and_does_no_harm(
    told: tuple[str, dict[str, dict[str, Any]]], cases: list[Case]
) -> None:
    verb, results = told
    wrong = [
        f"{case.id}: {problem}"
        for case in cases
        if case.id in results
        for problem in problems(verb, case, results[case.id])
    ]

    assert wrong == []


def problems(verb: str, case: Case, result: dict[str, Any]) -> Iterator[str]:
    yield from wrong_words(verb, case, result)
    if result["seconds"] > (HARD_LINE_S if case.id in AT_THE_LIMIT else MAX_S):
        yield f"took {result['seconds']:.1f} s"
    if result["mb"] > MAX_MB:
        yield f"took {result['mb']:.0f} MB"
    for harm in ("seen", "changed", "strange", "canary", "base_changed"):
        if result.get(harm):
            yield f"{harm}: {result[harm]}"
    if result.get("works_after") is False:
        yield "a good adapter could not be added right after"


def wrong_words(verb: str, case: Case, result: dict[str, Any]) -> Iterator[str]:
    right = set(case.verdicts) | ({"accept", "skip_file"} if {"accept", "skip_file"} & case.verdicts else set())
    if verb == "attach":  # which has warnings of its own, and refuses what it cannot run
        right |= {"warn", "accept"} if right - {"refuse"} else set()
        right |= {"refuse"} if case.code == "W_INIT" else set()
    if verb == "add":  # which knows the base, so that a config may be silent
        right |= {"accept"} if case.id == "C23" else set()
    if result["verdict"] not in right:
        yield f"{result['verdict']}, expected {sorted(right)}: {result['stderr'][:300]}"
    if result["exit_code"] == 1 or "Traceback" in result["stderr"]:
        yield f"a bug or a traceback: {result['stderr'][:300]}"
    names_codes = result["verdict"] == "refuse" and verb in ("add", "verify") and result["codes"]
    if names_codes and OTHER_CODES.get(case.id, case.code) not in {*result["codes"], ""}:
        yield f"refused for {result['codes']}, expected {case.code}"
    if result["verdict"] == "refuse" and verb != "verify" and "error" not in result["stderr"]:
        yield "refused without a word"
    if not all(c.isprintable() or c == "\n" for c in result["stderr"]):
        yield "control characters on the terminal"


def test_the_system_calls_of_an_add_open_nothing_outside(cases: list[Case], base: Path, tmp_path: Path) -> None:
    linking = [case.path for case in cases if case.code == "E_LINK"]
    log, home = tmp_path / "log", tmp_path / "home"
    code = """
import sys
from adapterhub.cli import _run
for number, path in enumerate(sys.argv[2:]):
    sys.argv[1:] = ["add", path, "--name", f"n{number}", "--root", HOME]
    _run()
""".replace("HOME", repr(str(home)))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path)}
    command = [
        needs_strace(),
        "-f",
        "-qq",
        "-e",
        "trace=open,openat,creat",
        "-o",
        str(log),
        sys.executable,
        "-c",
        code,
        "x",
    ]

    subprocess.run([*command, *map(str, linking)], env=environment, cwd=tmp_path, check=False, timeout=120)

    opened = [line for line in log.read_text(errors="replace").splitlines() if "ENOENT" not in line]
    assert any("adapter_config.json" in line for line in opened)
    assert [line for line in opened if "outside_secret" in line or "/etc/hostname" in line or "environ" in line] == []
    writing = [line for line in opened if "O_WRONLY" in line or "O_RDWR" in line or "O_CREAT" in line]
    assert [line for line in writing if str(tmp_path) not in line and "/dev/" not in line] == []


# ---------------------------------------------------------------- manifests
GOOD_MANIFEST = {"schema": "adapterhub/1", "name": "m", "version": "1.0.0", "base": {}, "method": ["LORA"]}
MANIFESTS: dict[str, dict[str, Any]] = {
    "another rank": {"rank": 4},
    "a negative rank": {"rank": -8},
    "a rank of 4,000 digits": {"rank": 10**3999},
    "other targets": {"target_modules": ["lm_head"]},
    "parameters beyond 64 bits": {"parameters": 10**30},
    "alpha beyond 64 bits": {"alpha": 10**300},
    "another method": {"method": ["IA3"]},
    "another alpha": {"alpha": 99.0},
    "another dtype": {"dtype": "bfloat16"},
    "alpha of 400 digits": {"alpha": 10**400},
    "a parent's weight of 400 digits": {"parents": [{"spec": "a", "weight": 10**400}]},
    "2,000 parents": {"parents": [{"spec": "a", "weight": 1}] * 2000},
    "100,000 files": {
        "files": [{"path": f"f{i}", "sha256": f"sha256:{'0' * 64}", "size_bytes": 1} for i in range(100_000)]
    },
    "100,000 methods that are none": {"method": [1] * 100_000},
    "a parent that is away, with escapes": {
        "parents": [{"spec": "\x1b[2J", "weight": 1, "digest": f"sha256:{'0' * 64}"}]
    },
    "a metric named with escapes": {"metrics": {"\x1b[2J": 1}},
    "escapes in its description": {"description": "\x1b[31mred\x07 \u202e"},
    "half a UTF-16 pair": {"description": "\ud800", "task": "\udfff"},
    "NUL in its task": {"task": "a\0b"},
    "a version that is a path": {"version": "../../x"},
    "a name that is a path": {"name": "../m"},
    "a description of 8 MB": {"description": "x" * 8_000_000},
    "60 levels of annotations": {"annotations": json.loads('{"a":' * 60 + "1" + "}" * 60)},
    "65 levels of annotations": {"annotations": json.loads('{"a":' * 65 + "1" + "}" * 65)},
    "an integer beyond JSON's": {"annotations": {"n": 2**60}},
    "a parent that is nobody": {"parents": [{"spec": "\x1b[2J", "weight": 1e300}]},
    "a card that is a bomb": {"card": "---\nn: 0x" + "f" * 50_000 + "\na: &a [*a]\n---\n"},
    "a base that is a path": {"base": {"hints": {"hub_id": "../../etc/passwd"}}},
}


REFUSED = {
    *(
        "another rank",
        "a negative rank",
        "other targets",
        "parameters beyond 64 bits",
        "another method",
        "another alpha",
    ),
    *("another dtype", "alpha of 400 digits", "a parent's weight of 400 digits", "2,000 parents", "100,000 files"),
    "a base that is a path",
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_hostile_manifest_is_refused_or_harmless(what: str, tmp_path: Path) -> None:
    import hashlib

    folder, adapt = good(tmp_path / "place" / "m"), Adapt(tmp_path)
    files = [
        {
            "path": p.name,
            "sha256": f"sha256:{hashlib.sha256(p.read_bytes()).hexdigest()}",
            "size_bytes": p.stat().st_size,
        }
        for p in folder.iterdir()
    ]
    sys.set_int_max_str_digits(0)
    try:
        text = json.dumps(GOOD_MANIFEST | {"files": files} | MANIFESTS[what])
    finally:
        sys.set_int_max_str_digits(4300)
    (folder / "adapterhub.json").write_text(text)
    before = tree(tmp_path, tmp_path / "home")

    done = adapt("install", "m", "--from", "place")
    told = [adapt("list"), adapt("show", "m"), adapt("list", "--json"), adapt("verify", "--all")]

    assert done.exit_code != 1, done.stderr
    assert all(t.exit_code != 1 for t in told), [t.stderr for t in told]
    printed = "".join(d.stdout + d.stderr for d in (done, *told[:2], told[3]))
    assert all(c.isprintable() or c in "\n\t" for c in printed)
    assert tree(tmp_path, tmp_path / "home") == before
    assert len(printed) < 50_000
    if what in REFUSED:
        assert (done.exit_code, told[0].stdout.count("\n")) == (16, 1)


def test_a_manifest_that_announces_a_petabyte_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    folder, adapt = good(tmp_path / "place" / "m"), Adapt(tmp_path)
    sizes = {"adapter_config.json": 10, "adapter_model.safetensors": 10**15, "LICENSE": 10**12}
    files = [{"path": name, "sha256": f"sha256:{'0' * 64}", "size_bytes": size} for name, size in sizes.items()]
    (folder / "adapterhub.json").write_text(json.dumps(GOOD_MANIFEST | {"files": files}))
    sparse(folder / "adapter_model.safetensors", 10**13)

    said = adapt.fails(16, "install", "m", "--from", "place", "--quiet")

    assert said.count("[E_LIMIT]") == 2
    assert adapt.library.store.root.joinpath("blobs").exists() is False


# ---------------------------------------------------------------- files that change, and limits
def test_weights_that_change_while_they_are_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub.trust.verify.subject import Entry

    folder, adapt = good(tmp_path / "made"), Adapt(tmp_path)
    adapt.ok("add", folder, "--name", "first")
    first = Entry.open

    def grow(entry: Entry) -> Any:
        stream = first(entry)
        if entry.name == "adapter_model.safetensors":  # after the header was read, while the bytes are copied
            with entry.path.open("ab") as more:
                more.write(b"x" * 1000)
        return stream

    monkeypatch.setattr(Entry, "open", grow)
    said = adapt.fails(16, "add", folder, "--name", "second")

    assert "grew while it was read" in said
    assert [b.full_name for b in adapt.library.installed()] == ["first"]


@pytest.mark.parametrize(
    ("setting", "refused"),
    [("tensors=7", True), ("file_bytes=1KiB", True), ("rank=7", True), ("config_bytes=10", True), ("rank=9", False),
     ("entries=1", True), ("name_bytes=20", True), ("header_bytes=100", True), ("text_bytes=1KB tensors=8", False)],
)  # fmt: skip
def test_limits_are_set_by_the_environment(
    setting: str,
    refused: bool,  # noqa: FBT001 - a parameter of the test
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good(tmp_path / "made")
    monkeypatch.setenv("ADAPTERHUB_LIMITS", setting)

    done = Adapt(tmp_path)("add", "made", "--name", "m")

    assert done.exit_code == (16 if refused else 0), done.stderr


@pytest.mark.parametrize("setting", ["tensors", "tensors=-1", "tensors=0", "tensors=8GiB", "nothing=1", "rank=x"])
def test_what_sets_no_limit_is_said(setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_LIMITS", setting)

    assert "ADAPTERHUB_LIMITS" in Adapt(tmp_path).fails(2, "list")
