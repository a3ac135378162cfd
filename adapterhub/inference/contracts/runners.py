"""Runners: test tools that exist are called, not rewritten. A user names one; a contract cannot ask for one."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from adapterhub.core.arguments import path_of
from adapterhub.core.digests import canonical_json
from adapterhub.core.errors import CHECK_FILE, EngineFailed, Incompatible, UsageProblem, shown
from adapterhub.formats.contract.contract import WRITERS, Contract
from adapterhub.formats.contract.results import TestedCase, Verdict
from adapterhub.inference.generation import NEW_TOKENS, before_stop
from adapterhub.inference.serving.llama_cpp.engine import command_of
from adapterhub.inference.serving.process import EngineProcess, free_port

OFFLINE: Final[Mapping[str, str]] = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_TRUST_REMOTE_CODE": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What a child gets, so that the Hugging Face libraries in it open no connection and run no code of a data set."""

_TOKENS: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "ADAPTERHUB_TOKEN", "ADAPTERHUB_PASSWORD")
_TAIL_BYTES: Final = 4096
_LINES_SHOWN: Final = 8
_GRACE_S: Final = 5
_OTHER_SERVER: Final = "update llama.cpp, or name another server with `--llama-server FILE`"
MAX_REPORT_BYTES: Final = 256 << 20
"""Of one file that a tool writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A tool that has ended: its exit code, its last lines, and its CPU seconds; `is_over` if they were too many."""

    code: int
    tail: str
    cpu_seconds: float
    is_over: bool

    def failed(self, tool: str) -> EngineFailed:
        """Return the error for a tool that ended without a result."""
        return EngineFailed(f"`{tool}` ended with code {self.code} and without a result:\n{self.tail}".rstrip(": \n"))


def find_tool(names: Sequence[str], install: str, path: str) -> str:
    """Return the place of a tool: beside this Python first, then in the folders of `path`, as in PATH.

    Raises:
        UsageProblem: it is not installed; the hint is the command that installs it.
    """
    places = os.pathsep.join([str(Path(sys.executable).parent), path or os.defpath])
    for name in names:
        if (found := shutil.which(name, path=places)) is not None:
            return str(Path(found).absolute())
    raise UsageProblem(f"the tool `{names[0]}` is not installed", hint=f"`{install}` installs it")


def run_tool(words: Sequence[str], *, folder: Path, environ: Mapping[str, str], budget_s: float) -> Ran:
    """Run a tool in `folder` to its end, with `environ` less its tokens and with the settings that keep it offline.

    `budget_s` are CPU seconds, after which the tool is ended. The child ends with an interrupt of the parent.

    Raises:
        EngineFailed: it does not start.
    """
    own = {name: value for name, value in environ.items() if name not in _TOKENS}
    before = _children_s()
    with tempfile.TemporaryFile() as out:
        try:
            process = subprocess.Popen(  # noqa: S603 - a tool that the user names
                list(words),
                cwd=folder,
                env={**own, **OFFLINE},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise EngineFailed(f"`{shown(words[0], 200)}` does not start: {error.strerror}", hint=CHECK_FILE) from None
        try:
            _limit(process.pid, budget_s)
            code = process.wait()
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        out.seek(max(out.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
        lines = [line for line in out.read().decode(errors="replace").splitlines() if line.strip()]
    used = _children_s() - before
    is_over = code == -signal.SIGXCPU or (code == -signal.SIGKILL and used >= budget_s)
    tail = "\n".join(f"  {shown(line, 200)}" for line in lines[-_LINES_SHOWN:])
    return Ran(code=code, tail=tail, cpu_seconds=used, is_over=is_over)


def _limit(pid: int, budget_s: float) -> None:
    """Let the kernel end the process after its CPU seconds, where the kernel can (Linux)."""
    if hasattr(resource, "prlimit"):
        seconds = math.ceil(budget_s)
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_CPU, (seconds, seconds + _GRACE_S))


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


METRIC: Final = "exact_match"
_NO_NAME: Final = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class LmEvalTask:
    """A task: its name, its files by name, and the arguments that the tool's model needs besides its paths."""

    name: str
    goldens: int
    files: Mapping[str, bytes]
    model_args: Mapping[str, str]

    @property
    def yaml(self) -> str:
        """The name of the task's YAML file."""
        return f"{self.name}.yaml"


def ensure_askable(contract: Contract) -> None:
    """Refuse a contract whose goldens lm-eval cannot ask.

    Raises:
        Incompatible: it writes no text, holds only digests, or has no golden.
    """
    if contract.kind not in WRITERS:
        raise Incompatible(
            f"lm-eval compares texts, and this contract is of the kind `{contract.kind}`",
            hint="`adapt test` without `--runner` checks it",
        )
    if contract.visibility == "digests":
        raise Incompatible(
            "the contract holds only digests, and lm-eval needs its prompts and answers",
            hint="name the full contract with `--tests FILE`",
        )
    if not contract.goldens:
        raise Incompatible(
            "the contract has no golden, and lm-eval asks only goldens",
            hint="`adapt test` without `--runner` checks it",
        )


def lm_eval_task(contract: Contract, prompts: Sequence[str], name: str) -> LmEvalTask:
    """Return the task of an adapter `name`; `prompts` are the texts of the contract's distinct goldens, in their frame.

    Raises:
        Incompatible: as `ensure_askable`.
    """
    ensure_askable(contract)
    form = contract.prompt
    task = f"adapt_{_NO_NAME.sub('_', name.lower()).strip('_') or 'adapter'}"
    rows = [
        # The tool cuts its answers before a stop text, and compares them with their leading spaces.
        {"id": golden.id, "prompt": prompt, "answer": before_stop(golden.answer, form.stop)}
        for golden, prompt in zip(contract.distinct, prompts, strict=True)
    ]
    settings: dict[str, object] = {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{task}.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        # The names of columns, not Jinja: texts with braces stay themselves, and none loses its last line feed.
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "num_fewshot": 0,
        "generation_kwargs": {
            "do_sample": False,
            "max_gen_toks": form.max_new_tokens or NEW_TOKENS,
            "until": list(form.stop),  # without the key, the tool ends each answer at an empty line
        },
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1, "contract": contract.digest},
    }
    head = "# Made by `adapt contract export`. Run the tool in this folder: the data file's path is relative.\n"
    text = head + "".join(f"{key}: {_yaml(value)}\n" for key, value in settings.items())
    # The frame is in the prompts; a rendered chat has its special tokens already.
    model_args = {} if form.has_special_tokens else {"add_bos_token": "False"}
    files = {f"{task}.yaml": text.encode(), f"{task}.jsonl": b"".join(canonical_json(row) + b"\n" for row in rows)}
    return LmEvalTask(name=task, goldens=len(rows), files=files, model_args=model_args)


def _yaml(value: object) -> str:
    """Return the value as YAML: JSON is YAML once what YAML folds or forbids is escaped."""
    return "".join(one if one.isprintable() else _escaped(one) for one in json.dumps(value, ensure_ascii=False))


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


INSTALL: Final = "pip install 'lm_eval[hf]'"
_BATCH: Final = "8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What the tool measured: its metrics by `task/metric`, a sample for each prompt, and the versions of its parts."""

    metrics: Mapping[str, float]
    samples: tuple[Mapping[str, Any], ...]
    engine: str
    ran: Ran


def lm_eval_tool(path: str) -> str:
    """Return the place of the tool, beside this Python or in the folders of `path`.

    Raises:
        UsageProblem: it is not installed.
    """
    return find_tool(("lm-eval", "lm_eval"), INSTALL, path)


def task_place(task: Path) -> tuple[Path, str]:
    """Provide the folder in which the tool runs a user's task, and the task's name: a YAML file, or `.` for all.

    Raises:
        UsageProblem: there is no such task, or the tool would take its name for several.
    """
    named = path_of(task).absolute()
    where = shown(str(task), 200)
    if named.is_dir():
        if not any(named.glob("*.yaml")):
            raise UsageProblem(
                f"`--task {where}`: the folder has no `.yaml` file",
                hint="name a folder with a task of lm-eval, which is a `.yaml` file",
            )
        return named, "."
    if not named.is_file() or named.suffix != ".yaml":
        raise UsageProblem(f"`--task {where}`: expected the `.yaml` file of a task, or a folder of such files")
    if "," in named.name:
        raise UsageProblem(
            f"`--task {where}`: lm-eval takes a comma in the name for two tasks",
            hint="rename the file without the comma",
        )
    return named.parent, named.name


def score(
    tool: str,
    place: tuple[Path, str],
    folders: tuple[Path, Path],
    work: Path,
    environ: Mapping[str, str],
    *,
    device: str,
    model_args: Mapping[str, str],
    budget_s: float,
) -> Scored | Ran:
    """Return the tool's measurement of a task at its `place`; how the tool ended, where its budget did not suffice.

    `folders` are those of the base and of the adapter. `work` is an empty folder: links to the model, caches and
    results go there, so that no path of the user meets the tool's own syntax and no answer of another run is taken for
    one of this. `model_args` are further arguments of its model, such as `dtype`. `budget_s` are CPU seconds.

    Raises:
        EngineFailed: the tool ended without a result.
        UsageProblem: the path of the work folder breaks the tool's syntax.
    """
    if any(letter in str(work) for letter in ",= "):
        raise UsageProblem(
            f"lm-eval takes no path such as `{shown(str(work), 200)}`",
            hint="set TMPDIR to a folder without `,`, `=` or spaces",
        )
    folder, task = place
    (work / "base").symlink_to(folders[0].absolute(), target_is_directory=True)
    (work / "adapter").symlink_to(folders[1].absolute(), target_is_directory=True)
    given = {"pretrained": work / "base", "peft": work / "adapter", "trust_remote_code": False, **model_args}
    words = [tool, "--model", "hf", "--model_args", ",".join(f"{k}={v}" for k, v in given.items())]
    words += ["--tasks", task, "--device", device, "--batch_size", _BATCH]
    words += ["--output_path", str(work / "out"), "--log_samples"]
    caches = {"HF_HOME": str(work / "cache"), "HF_DATASETS_CACHE": str(work / "cache" / "datasets")}
    ran = run_tool(words, folder=folder, environ={**environ, **caches}, budget_s=budget_s)
    if ran.is_over:
        return ran
    if ran.code != 0:
        raise ran.failed("lm-eval")
    return _read(work / "out", ran)


def _read(out: Path, ran: Ran) -> Scored:
    try:
        [results] = out.rglob("results_*.json")
        document = json.loads(_text(results))
        lines = [json.loads(line) for path in sorted(out.rglob("samples_*.jsonl")) for line in _text(path).splitlines()]
        metrics = {
            f"{task}/{key.removesuffix(',none')}": float(value)
            for task, values in document["results"].items()
            for key, value in values.items()
            if isinstance(value, int | float) and "," in key and "_stderr" not in key
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineFailed(
            f"`lm-eval` wrote results that cannot be read: {shown(str(error), 200)}",
            hint=f"`{INSTALL} -U` brings a newer one",
        ) from None
    versions = {"lm-eval": document.get("lm_eval_version"), "transformers": document.get("transformers_version")}
    engine = ", ".join(f"{name} {shown(str(value), 40)}" for name, value in versions.items() if value)
    return Scored(metrics=metrics, samples=tuple(lines), engine=engine or "lm-eval", ran=ran)


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_REPORT_BYTES:
        raise ValueError(f"{path.name} has more than {MAX_REPORT_BYTES >> 20} MB")
    return path.read_text(encoding="utf-8")


_START_S: Final = 600.0
_ANSWER_S: Final = 600.0
_MOST_BYTES: Final = 16 << 20
_ONE: Final = [{"id": 0, "scale": 1.0}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """An answer: its token ids, with the end token if it came, and its text without special tokens."""

    tokens: tuple[int, ...]
    text: str


class LlamaServer:
    """A server that runs, at a port of loopback."""

    def __init__(self, port: int) -> None:
        self._port = port

    def answer(self, prompt: Sequence[int], *, new: int, stop: Sequence[str] = ()) -> Written:
        """Return the greedy answer to the tokens of a prompt, of at most `new` tokens.

        Raises:
            EngineFailed: the server does not answer, or in words that cannot be read.
        """
        asked = {"prompt": list(prompt), "n_predict": new, "temperature": 0, "top_k": 1, "stop": list(stop)}
        body = json.dumps({**asked, "return_tokens": True, "cache_prompt": False, "lora": _ONE})
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_S)
        try:
            with contextlib.closing(connection):
                connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                raw = answer.read(_MOST_BYTES)
            if answer.status != http.HTTPStatus.OK:
                why = shown(raw.decode(errors="replace"), 200)
                raise EngineFailed(f"llama-server refuses a prompt: {why}", hint=_OTHER_SERVER)
            value = json.loads(raw)
            return Written(tokens=tuple(map(int, value["tokens"])), text=str(value["content"]))
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            why = shown(str(error), 200)
            raise EngineFailed(f"llama-server gives no answer that can be read: {why}", hint=_OTHER_SERVER) from None


@contextlib.contextmanager
def serving(program: str, base: Path, adapter: Path, environ: Mapping[str, str]) -> Iterator[LlamaServer]:
    """Provide a server with the one adapter on the base while the block runs.

    Raises:
        EngineFailed: it does not start; with its last lines.
    """
    port = free_port("127.0.0.1")
    words = ["--host", "127.0.0.1", "--port", str(port)]
    command = command_of(program, base.absolute(), [adapter.absolute()], words, 1)
    with tempfile.TemporaryFile() as log:
        try:
            with EngineProcess(command, environ, output=log) as engine:
                engine.wait_until_ready(f"http://127.0.0.1:{port}/health", within_s=_START_S)
                yield LlamaServer(port)
        except EngineFailed as error:
            log.seek(0)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
            tail = "\n".join(f"  {shown(line, 200)}" for line in lines[-_LINES_SHOWN:])
            raise EngineFailed(f"{error.message}\n{tail}".rstrip()) from None


PLUGIN: Final = "adapterhub.api.contracts.pytest_plugin"
"""The module of the entry point; of `api`, which holds the faces for Python."""

_RAN: Final = (0, 1, 5)
"""pytest's exit codes for: all passed, some failed, no test was found."""
_SHOWN: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class PytestRun:
    """What pytest ran: a case for each test, and its version."""

    cases: tuple[TestedCase, ...]
    engine: str
    ran: Ran


def ensure_pytest() -> None:
    """Refuse to go on without pytest.

    Raises:
        UsageProblem: it is not installed beside this Python.
    """
    if find_spec("pytest") is None:
        raise UsageProblem("the tool `pytest` is not installed", hint="`pip install pytest` installs it")


def plugin_name() -> str:
    """Return the value of `-p`: the entry point's name, or the module if the package does not announce it yet."""
    return next((entry.name for entry in entry_points(group="pytest11") if entry.value == PLUGIN), PLUGIN)


def run_pytest(task: Path, work: Path, environ: Mapping[str, str], *, budget_s: float) -> PytestRun:
    """Run the tests at `task` with the plugin in; `environ` names the adapter. The report goes into `work`.

    Raises:
        EngineFailed: pytest ended without a report, or could not collect the tests.
        UsageProblem: there are no such tests.
    """
    named = path_of(task).absolute()
    if not named.exists():
        raise UsageProblem(
            f"`--task {shown(str(task), 200)}`: there is no such file or folder",
            hint="check the path; `--task` takes a task of lm-eval, or tests of pytest",
        )
    report = work / "report.xml"
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    words += ["-p", plugin_name(), f"--junitxml={report}", str(named)]
    folder = named if named.is_dir() else named.parent
    ran = run_tool(words, folder=folder, environ=environ, budget_s=budget_s)
    if not ran.is_over and ran.code not in _RAN:
        raise ran.failed("pytest")
    cases = () if ran.is_over else _cases(report, ran)
    return PytestRun(cases=cases, engine=f"pytest {version('pytest')}", ran=ran)


def _cases(report: Path, ran: Ran) -> tuple[TestedCase, ...]:
    from xml.etree import ElementTree as ET

    try:
        if report.stat().st_size > MAX_REPORT_BYTES:
            raise EngineFailed(
                f"`pytest` wrote a report of more than {MAX_REPORT_BYTES >> 20} MB",
                hint="name fewer tests: `--task PATH`",
            )
        root = ET.parse(report).getroot()  # noqa: S314 - written by the pytest that ran the user's own tests
    except (OSError, ET.ParseError):
        raise ran.failed("pytest") from None
    found: dict[str, TestedCase] = {}
    for case in root.iter("testcase"):
        verdict: Verdict = "PASS"
        problem = ""
        for child in case:
            if child.tag in ("failure", "error"):
                verdict, problem = "CHANGED", child.get("message") or child.tag
            elif child.tag == "skipped" and verdict == "PASS":
                verdict, problem = "UNKNOWN", child.get("message") or "skipped"
        name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
        if name not in found or verdict == "CHANGED":  # a teardown that fails is a second case of the same name
            found[name] = TestedCase(id=name, kind="test", verdict=verdict, problem=problem[:_SHOWN])
    return tuple(found.values())
