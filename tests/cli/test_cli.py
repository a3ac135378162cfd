"""The command line as a user meets it: real processes, real files."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import IO

import click
import pytest
from click.testing import CliRunner

from adapterhub.api.checking import bytes_to_check, reports_of
from adapterhub.cli import cli
from adapterhub.library.library import Library
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

ADAPT = [sys.executable, "-c", "from adapterhub.cli import main; main()"]


class Shell:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = os.environ | {"ADAPTERHUB_HOME": str(folder / "home")}
        self.environ.pop("ADAPTERHUB_SOURCES", None)

    def __call__(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*ADAPT, *arguments],
            cwd=self.folder,
            env=self.environ | environ,
            text=True,
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def ok(self, *arguments: str) -> str:
        done = self(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fails(self, code: int, *arguments: str) -> str:
        done = self(*arguments)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture
def adapt(tmp_path):
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "out" / "legal-qa", seed=1)
    make_adapter(tmp_path / "out" / "summarize", seed=2, rank=8)
    return Shell(tmp_path)


@pytest.fixture
def filled(adapt):
    here = Adapt(adapt.folder)  # in this process, which is much quicker; each test starts its own
    here.ok("base", "add", "./base", "--as", "base-7b")
    here.ok("add", "out/legal-qa", "--name", "legal-qa", "--base", "base-7b", "--task", "legal-qa")
    here.ok("add", "out/summarize", "--name", "summarize", "--base", "base-7b", "--task", "summary")
    return adapt


def test_the_main_job_by_hand(filled):
    header, *rows = filled.ok("list").splitlines()
    assert header == "name\tversion\tbase\ttask\trank\tmethod\tsize"
    assert [row.split("\t")[0] for row in rows] == ["legal-qa", "summarize"]
    filled.ok("verify", "--all")
    here = Adapt(filled.folder)
    merged = here.json("merge", "legal-qa", "summarize", "--weights", "0.7,0.3", "-o", "both")
    assert merged["relative_error"] < 1e-6
    shown = here.json("show", "both@base-7b")
    assert [(p["spec"], p["weight"]) for p in shown["parents"]] == [("legal-qa==1.0.0", 0.7), ("summarize==1.0.0", 0.3)]
    folder = Path(here.ok("info", "both", "--path").strip())
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in folder.iterdir()}


def test_install_from_a_published_directory(filled):
    here = Adapt(filled.folder)
    here.ok("push", "legal-qa@base-7b", "--to", "./published")
    other = Adapt(filled.folder, "second-home")
    other.ok("base", "add", "./base", "--as", "base-7b")

    dry = other.ok("install", "legal-qa@base-7b", "--from", "published", "--dry-run")
    assert "would install legal-qa 1.0.0 (rank 4)" in dry
    assert other.json("list") == []
    other.ok("install", "legal-qa@base-7b", "--from", "published")

    assert [row["name"] for row in other.json("list")] == ["legal-qa"]
    assert "already installed" in other.ok("install", "legal-qa@base-7b", "--from", "published")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "nothing"], 10, "no adapter `nothing`"),
        (["extract", "./model"], 2, "`adapt extract` needs `--base BASE`"),
        (["show", "legal-aq"], 10, "did you mean `legal-qa`"),
        (["install", "legal-qa@base-7b>=2"], 11, "1.0.0"),
        (["install", "legal-qa@1.0.0"], 2, "=="),
        (["add", "out/missing", "--name", "x"], 10, "no such folder: `out/missing`"),
        (["add", "out/legal-qa", "--name", "Legal"], 2, "write `legal`"),
        (["add", "out/summarize", "--name", "legal-qa", "--base", "base-8b"], 10, "base-7b"),
        (["merge", "legal-qa", "summarize", "--weights", "1", "-o", "x"], 2, "1 weight for 2 adapters"),
        (["merge", "legal-qa", "summarize", "--weights", "nan,1", "-o", "x"], 2, "nan"),
        (["merge", "legal-qa", "summarize", "--method", "svd", "--rank", "0", "-o", "x"], 2, "0"),
        (["merge", "legal-qa", "summarize", "--method", "tea", "-o", "x"], 2, "no merge method `tea`"),
        (["remove", "legal-qa"], 2, "--yes"),
        (["lst"], 2, "did you mean `adapt list`"),
        (["base", "compare", "base-7b", "./nowhere"], 10, "nowhere"),
        (["verify"], 2, "--all"),
    ],
)
def test_refusals_are_one_plain_line_with_their_exit_code(filled, arguments, code, said):
    assert said in Adapt(filled.folder).fails(code, *arguments)  # in this process; those below start their own


def test_a_failure_under_json_is_a_document_on_stderr(filled):
    done = filled("show", "nothing", "--json")

    assert done.stdout == ""
    assert json.loads(done.stderr)["error"] | {"message": "", "hint": ""} == {
        "type": "AdapterNotFound",
        "message": "",
        "hint": "",
        "exit_code": 10,
    }


def leaves(group: click.Group, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command that does something, by the words that call it."""
    found = []
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        found += leaves(command, (*words, name)) if isinstance(command, click.Group) else [(*words, name)]
    return found


@pytest.mark.parametrize("words", leaves(cli), ids=" ".join)
def test_every_command_has_json_and_an_example_in_its_help(words):
    done = CliRunner().invoke(cli, [*words, "--help"])

    assert done.exit_code == 0
    assert "--json" in done.output
    assert "Example" in done.output


def test_exit_codes_of_verify_tell_failure_damage_and_not_knowing_apart(filled, tmp_path):
    here = Adapt(filled.folder)
    here.ok("add", "out/legal-qa", "--name", "orphan", "--no-base")
    assert here("verify", "legal-qa").exit_code == 0
    assert here("verify", "orphan").exit_code == 17
    bad = make_adapter(tmp_path / "bad", r=9)
    assert here("verify", str(bad), "--base", "base-7b").exit_code == 3
    weights = Path(here.ok("info", "legal-qa", "--path").strip()) / "adapter_model.safetensors"
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = here("verify", "legal-qa", "--json")
    assert done.exit_code == 12
    [report] = json.loads(done.stdout)
    assert "E_DIGEST" in {f["code"] for f in report["findings"]}


def test_checking_an_unsigned_folder_imports_nothing_of_libraries(tmp_path):
    make_adapter(tmp_path / "adapter")
    code = (
        "import sys\n"
        "sys.argv = ['adapt', 'verify', './adapter']\n"
        "from adapterhub.cli import main\n"
        "try: main()\n"
        "finally: print(*sorted(sys.modules))\n"
    )
    environment = os.environ | {"ADAPTERHUB_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    imported = done.stdout.split()

    assert done.returncode == 17  # it compared with no base
    assert "adapterhub.trust.verify.checks.numbers" in imported
    assert [name for name in imported if name.startswith(("adapterhub.library", "sqlite3", "shutil", "secrets"))] == []


@pytest.mark.parametrize("adapters", [(), ("legal-qa", "./out/summarize")])
def test_the_bar_of_verify_ends_at_its_total(filled, tmp_path, monkeypatch, adapters):
    monkeypatch.chdir(tmp_path)
    library = Library(tmp_path / "home")
    (tmp_path / "home" / "blobs" / "sha256" / "00").mkdir(exist_ok=True)  # and what no build needs
    (tmp_path / "home" / "blobs" / "sha256" / "00" / f"{'0' * 64}").write_bytes(b"unused")
    read: list[int] = []

    for _ in reports_of(lambda: library, adapters, None, read.append):
        pass

    assert 0 < sum(read) == bytes_to_check(lambda: library, adapters)


def test_verify_shows_its_total_on_a_terminal(filled):
    shown = on_terminal(filled, 0, "verify", "--all", NO_COLOR="1")

    assert re.search(r"verify .*[1-9][\d.]*/[1-9][\d.]* [kM]?B", shown), shown


def test_one_bar_shows_several_adds_and_a_pipe_gets_their_results(filled, tmp_path):
    for name in ("one", "two"):
        make_adapter(tmp_path / name)
    with (tmp_path / "said").open("wb") as said:
        places = [str(tmp_path / name) for name in ("one", "two")]
        shown = on_terminal(filled, 0, "add", *places, stdout=said, ADAPTERHUB_HOME=str(tmp_path / "home"))

    assert re.search(r"add 2 .*[1-9][\d.]* [kM]?B", shown), shown
    lines = (tmp_path / "said").read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [["added", "one"], ["added", "two"], ["2", "given:"]]


def on_terminal(shell: Shell, code: int, *arguments: str, stdout: IO[bytes] | None = None, **environ: str) -> str:
    """What a terminal of 100 columns shows."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*ADAPT, *arguments], stdout=stdout or follower, stderr=follower, stdin=follower, cwd=shell.folder,
        env=shell.environ | {"TERM": "xterm-256color", "COLUMNS": "100"} | environ,
    )  # fmt: skip
    os.close(follower)
    chunks = []
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:
            break
        if not chunk:
            break
        chunks.append(chunk)
    assert process.wait() == code
    return b"".join(chunks).decode().replace("\r\n", "\n")


def test_a_terminal_gets_a_table_and_no_colour_is_obeyed(filled):
    coloured, plain = on_terminal(filled, 0, "list"), on_terminal(filled, 0, "list", NO_COLOR="1")
    narrow = on_terminal(filled, 0, "list", NO_COLOR="1", COLUMNS="30")

    assert "───" in coloured
    assert coloured.startswith("\x1b[1mname ")
    assert "\x1b" not in plain
    assert "legal-qa" in plain
    assert "legal-qa   1.0.0    base-7b\n  legal-qa     4  lora" in narrow


def test_errors_and_hints_are_coloured_on_a_terminal_only(filled):
    coloured = on_terminal(filled, 10, "show", "legal-aq")

    assert "\x1b[1;31merror:\x1b[0m no adapter `legal-aq`" in coloured
    assert "\n\x1b[1;36mhint:\x1b[0m did you mean" in coloured
    for quiet in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in on_terminal(filled, 10, "show", "legal-aq", **quiet)
    assert "\x1b" not in filled.fails(10, "show", "legal-aq")


def test_a_closed_pipe_is_no_error(filled):
    done = subprocess.run(
        f"{' '.join(map(repr, ADAPT))} list | head -n 1",
        shell=True,
        cwd=filled.folder,
        env=filled.environ,
        capture_output=True,
        text=True,
        check=True,
    )

    assert (done.stdout.split("\t")[0], done.stderr) == ("name", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("how", [[], ["--json"]])
def test_a_refusal_that_cannot_be_said_keeps_its_exit_code(filled, how, unbuffered):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*ADAPT, "show", "nothing", *how],
            cwd=filled.folder, env=filled.environ | {"PYTHONUNBUFFERED": unbuffered}, stderr=full, check=False,
        )  # fmt: skip

    assert done.returncode == 10


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_result_that_finds_no_room_is_one_plain_refusal(filled, unbuffered):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*ADAPT, "list"], cwd=filled.folder, env=filled.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip

    assert done.returncode == 14
    assert done.stderr.startswith("error: operating system error: No space left on device\nhint: ")
    assert done.stderr.count("\n") == 2


@pytest.mark.parametrize(("what", "closed", "code"), [("list", ">&-", 0), ("show nothing", "2>&-", 10)])
def test_a_closed_stream_changes_no_exit_code(filled, what, closed, code):
    command = f"{' '.join(map(repr, ADAPT))} {what} {closed}"

    done = subprocess.run(command, shell=True, cwd=filled.folder, env=filled.environ, capture_output=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


def test_push_dry_run_prints_exactly_what_is_sent(filled, tmp_path):
    here = Adapt(filled.folder)
    document = here.json("push", "legal-qa@base-7b", "--to", "./published", "--dry-run")
    assert not (tmp_path / "published").exists()
    here.ok("push", "legal-qa@base-7b", "--to", "./published")

    import hashlib

    [folder] = (tmp_path / "published" / "legal-qa").iterdir()
    sent = {p.name: "sha256:" + hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    assert {f["path"]: f["sha256"] for f in document["files"]} == sent
    weights = here.json("base", "show", "base-7b")["fingerprint"]["weights"]
    assert {
        "adapterhub",
        "adapter-name:legal-qa",
        f"base-sha256:{weights[7:39]}",
        "adapter-task:legal-qa",
        "lora-rank:4",
    } <= set(document["tags"])
    assert document["tag"] == "v1.0.0"


def test_doctor_reports_and_mends_the_index(filled, tmp_path):
    here = Adapt(filled.folder)
    here.ok("doctor", "--offline")
    (tmp_path / "home" / "index.db").write_bytes(b"garbage" * 1000)

    assert "--rebuild-index" in here("doctor", "--offline").stderr
    here.ok("doctor", "--rebuild-index", "--offline")
    assert [row["name"] for row in here.json("list")] == ["legal-qa", "summarize"]


def test_remove_and_gc(filled):
    here = Adapt(filled.folder)
    here.ok("remove", "summarize", "--yes")

    dry = here.json("cache", "clean", "--dry-run", "--grace", "0")
    freed = here.json("cache", "clean", "--grace", "0")

    assert dry["freed_bytes"] == freed["freed_bytes"] > 0
    assert [row["name"] for row in here.json("list")] == ["legal-qa"]
    here.ok("verify", "--all")


def test_base_compare_gives_its_verdict_and_exit_code(filled, tmp_path):
    here = Adapt(filled.folder)
    make_base(tmp_path / "half", dtype="f2")
    make_base(tmp_path / "tuned", seed=5)

    assert here.ok("base", "compare", "base-7b", "./half").startswith("SAME_WEIGHTS_OTHER_PRECISION\n")
    done = here("base", "compare", "base-7b", "./tuned")
    assert (done.stdout.splitlines()[0], done.exit_code) == ("SAME_SHAPES", 11)


def test_interrupting_says_so_and_exits_130(filled):
    import signal

    code = (
        "import os, signal, sys, threading, time; from adapterhub.cli import main; import adapterhub.library.library as l;"
        "strike = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT));"
        "l.Library.verify_build = lambda *a: (strike.start(), time.sleep(30));"
        "sys.argv=['adapt','verify','--all']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=filled.environ, cwd=filled.folder, capture_output=True, text=True, check=False
    )

    assert done.returncode == 130
    assert "interrupted" in done.stderr
    assert signal.SIGINT == 2


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interruption_that_a_library_turns_into_another_error_is_none_of_our_bugs(filled, number, code):
    program = f"""
import os, signal, sys, time
import adapterhub.library.library
from adapterhub.cli import main

def verify(*_):
    try:
        os.kill(os.getpid(), signal.{number})
        time.sleep(30)
    except BaseException:
        raise RuntimeError("initialization of a module failed") from None

adapterhub.library.library.Library.verify_build = verify
sys.argv = ["adapt", "verify", "--all"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=filled.environ, cwd=filled.folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip

    assert (done.returncode, "bug" in done.stderr) == (code, False), done.stderr


ON_WINDOWS = """
import sys
import click  # looks at the platform, too, and finds the console of Windows there
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
sys.platform = "win32"
from adapterhub.cli import main
main()
"""


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["verify", "--all"]])
def test_windows_is_answered_with_one_line_that_names_wsl(arguments):
    done = subprocess.run([sys.executable, "-c", ON_WINDOWS, *arguments], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: adapt runs on Linux and macOS; ")
    assert "WSL" in done.stderr
