"""One long-lived process that runs hostile adapters through one verb and tells what each did to it.

    python -m tests.support.hostile_child VERB JOB.json

VERB is add, install, verify or attach. Prints one JSON line a case: verdict, what was said, CPU seconds of an idle core,
megabytes above what the process held before, and everything that must not happen. Used by `test_hostile.py`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import resource
import signal
import subprocess  # noqa: F401 - what a chat template needs is here before a case runs
import sys
import tempfile  # noqa: F401 - as above
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapterhub.core.errors import AdapterHubError
from adapterhub.formats.manifest import MEDIA_TYPES
from tests.support.command_line import Adapt

CALM = {"adapterhub", "encodings", "tests"}
"""Whose modules may be imported while a case runs, after one good adapter went through."""
FORBIDDEN = {"pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect"}
TAKEN = {*MEDIA_TYPES, "adapterhub.json", "README.md"}


SUSPECT_S = 1.0
"""Only what takes longer is compared with the speed of an idle core."""
HANGS_S = 300
"""After this many seconds a case is given up: it would never end."""


class Hangs(BaseException):
    """A case that was given up."""


class Watch:
    """Audit hook and import hook: what the interpreter was asked to do meanwhile."""

    def __init__(self, stays_in: Path) -> None:
        self.inside = str(stays_in)
        self.seen: list[str] = []
        self.active = False
        sys.addaudithook(self.hear)
        sys.meta_path.insert(0, self)  # type: ignore[arg-type]

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        if self.active and name.partition(".")[0] not in CALM:
            self.seen.append(f"imported {name}")

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r:.80}")
        if event == "open" and isinstance(arguments[0], str | bytes):
            path, flags = os.fsdecode(arguments[0]), arguments[2] or 0
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not str(Path.cwd() / path).startswith(self.inside) and path != os.devnull:
                self.seen.append(f"wrote {path}")
            if "outside_secret" in os.path.realpath(path):
                self.seen.append(f"opened the secret by {path}")

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        self.seen = []
        self.active = True
        try:
            yield self.seen
        finally:
            self.active = False


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file of the library with its number, size and last change; locks and the log of the index are no content."""
    found = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "locks"]
        for name in files:
            if not name.endswith(("-wal", "-shm")):
                facts = Path(parent, name).lstat()
                found[f"{parent}/{name}"] = facts.st_ino, facts.st_size, facts.st_mtime_ns
    return found


def slowness() -> float:
    """How many times longer a fixed piece of work takes than on an idle core: a neighbour on the same core doubles it."""
    started = time.process_time()
    sum(map(len, map(str, range(300_000))))
    return (time.process_time() - started) / 0.025


def memory_mb(key: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{key}:")[2].split()[0]) / 1024


def forget_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_mb(*, since_reset: bool) -> float:
    return memory_mb("VmHWM") if since_reset else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def command_verdict(adapt: Adapt, *arguments: object) -> dict[str, Any]:
    """`refuse`, `warn` or `accept`, as exit code and warnings of a command tell."""
    done = adapt(*arguments, "--json")
    said = {"exit_code": done.exit_code, "stderr": done.stderr, "stdout": done.stdout, "codes": []}
    if done.exit_code:
        error = json.loads(done.stderr.splitlines()[-1])["error"]
        said["codes"] = [code for code, _ in error.get("findings", [])]
        return {**said, "verdict": "refuse"}
    documents = json.loads(done.stdout)
    warnings = [w for d in (documents if isinstance(documents, list) else [documents]) for w in d.get("warnings", [])]
    said["codes"] = [w["code"] for w in warnings]
    return {**said, "verdict": "warn" if warnings else "accept"}


def verify_verdict(adapt: Adapt, path: str, base: str) -> dict[str, Any]:
    done = adapt("verify", path, "--base", base, "--json")
    if not done.stdout:  # nothing to check is there
        error = json.loads(done.stderr.splitlines()[-1])["error"]
        codes = [error["type"]]
        return {"exit_code": done.exit_code, "stderr": done.stderr, "stdout": "", "codes": codes, "verdict": "refuse"}
    report = json.loads(done.stdout)[0]
    kinds = {f["severity"] for f in report["findings"]}
    codes = [f["code"] for f in report["findings"]]
    skipped = any(c.startswith("S_") for c in codes)
    verdict = "refuse" if "error" in kinds else "warn" if "warning" in kinds else "skip_file" if skipped else "accept"
    return {"exit_code": done.exit_code, "stderr": done.stderr, "stdout": "", "codes": codes, "verdict": verdict}


class Attaching:
    """`adapterhub.attach` on a model that is made once; its weights must stay as they were."""

    def __init__(self, base: str, root: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(base)
        self.root = root
        self.before = self.weights()

    def weights(self) -> str:
        hasher = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            hasher.update(name.encode() + value.numpy().tobytes())
        return hasher.hexdigest()

    def verdict(self, path: str) -> dict[str, Any]:
        import adapterhub

        said: dict[str, Any] = {"exit_code": 0, "stderr": "", "stdout": "", "codes": []}
        try:
            attached = adapterhub.attach(self.model, Path(path), library=self.root)
        except AdapterHubError as error:
            codes = [code for code, _ in getattr(error, "findings", ())]
            said |= {"exit_code": error.exit_code, "stderr": f"error: {error.message}", "codes": codes}
            return {**said, "verdict": "refuse"}
        warned = bool(attached.warnings)
        attached.detach()
        return {**said, "verdict": "warn" if warned else "accept"}


def judge(verb: str, job: dict[str, Any], adapt: Adapt) -> Callable[[dict[str, Any], str], dict[str, Any]]:
    base = job["base"]
    if verb == "attach":
        attaching = Attaching(job["base_folder"], adapt.folder / adapt.home)

        def attach(case: dict[str, Any], _name: str) -> dict[str, Any]:
            said = attaching.verdict(case["path"])
            return said | {"base_changed": attaching.weights() != attaching.before}

        return attach
    return {
        "add": lambda c, name: command_verdict(adapt, "add", c["path"], "--name", name, "--base", base),
        "install": lambda c, name: command_verdict(
            adapt, "install", c.get("name", name), "--from", c["path"], "--base", base, *c.get("options", ())
        ),
        "verify": lambda c, _name: verify_verdict(adapt, c["path"], base),
    }[verb]


def give_up(_number: int, _frame: object) -> None:
    raise Hangs


def main() -> None:
    signal.signal(signal.SIGALRM, give_up)
    verb, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    adapt = Adapt(Path(job["folder"]))
    home = adapt.folder / adapt.home
    decide = judge(verb, job, adapt)
    # which only large weights, a pattern in a config, a fraction in a manifest, and a hint at a base import
    for late in ("numpy", "regex", "rfc8785", "difflib"):
        importlib.import_module(late)
    for number in range(2):  # all that is imported late is here afterwards
        decide({"path": job["good"]}, f"good{number}")
        decide({"path": job["missing"]}, f"missing{number}")
    watch, stores = Watch(adapt.folder), verb in ("add", "install")
    for number, case in enumerate(job["cases"]):
        before = tree(home) if stores else {}
        reset = forget_peak()
        held, started = memory_mb("VmRSS"), time.process_time()
        with watch.watching() as seen:
            signal.alarm(HANGS_S)
            try:
                result = decide(case, f"case-{number}")
            except BaseException as error:  # noqa: BLE001 - any of them is what we look for
                result = {
                    "verdict": f"{type(error).__name__}: {error}"[:300],
                    "exit_code": 1,
                    "stderr": "",
                    "stdout": "",
                }
            finally:
                signal.alarm(0)
        seconds, mb = time.process_time() - started, peak_mb(since_reset=reset) - held
        seconds /= max(1, slowness()) if seconds > SUSPECT_S else 1
        result |= {"seconds": seconds, "mb": mb, "seen": seen}
        if stores and result["verdict"] == "refuse":
            after = tree(home)
            result["changed"] = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
            if number % job["add_after_each"] == 0:
                again = adapt("add", job["good"], "--name", "good", "--version", f"2.0.{number}", "--base", job["base"])
                result["works_after"] = again.exit_code == 0
        elif stores:
            folders = (home / "adapters").rglob("*")
            result["strange"] = sorted({p.name for p in folders if p.is_file()} - TAKEN)
        result["canary"] = any(Path(folder, "CANARY_RAN").exists() for folder in (adapt.folder, Path.cwd()))
        sys.stdout.write(json.dumps({"id": case["id"], **result}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
