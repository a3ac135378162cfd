"""Every command with `--json`, once, in one world: two servers on loopback, a library, models that answer.

    for name, document in documents(folder): …

A name is the words of the command with `-` between, and behind a `.` which of its documents it is. What differs from
run to run or from machine to machine is made the same by `steady`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from adapterhub_registry.settings import parse_networks

from tests.cli.test_serve_command import serving
from tests.cli.test_serve_sync import file_for
from tests.registry import many_adapters
from tests.registry.receiver import receiver
from tests.registry.running import Running, running
from tests.support.command_line import Adapt
from tests.support.docs_sandbox import HUB_ID, WIDTH, make_sandbox
from tests.support.routed_library import fill
from tests.support.standin_running import running as running_engine
from tests.support.standin_vllm import make_standin
from tests.support.tiny import make_adapter, make_base

Document = Any
TEAM = "acme"
LEGAL, SUMMARY = "legal-qa@base-7b", "summarize@base-7b"
ERROR = "error"
"""The name of the document that a refusal is."""

_FACTS = {
    "seconds", "tokens_per_second", "rows_per_second", "received_bytes", "fact", "pem", "text", "card", "script", "seed",
    "relative_error", "worst_error", "truncation_error", "worst_module", "worst_tensor", "base_loss", "loss_before", "loss_after",
    "single_losses", "token", "host", "pid", "added_at", "tune_loss_base", "tune_loss_before",
    "tune_loss_after", "published_at", "moved_at", "moved_by", "timestamp", "serialNumber",
}  # fmt: skip
"""Fields whose values are another machine's or another moment's; they become their kind, such as `<number>`."""
_SIZES = {"size_bytes", "freed_bytes", "alone_bytes"}
_FACTS_OF = {
    "alias-history": {"at", "by"},
    "alias-keep": {"set_by", "set_at"},
    "cache-show": _SIZES,
    "cache-clean": _SIZES,
    "extract": _SIZES,
    "merge.tune": {*_SIZES, "weight", "weights"},
    "registry-check": {"bytes", "database_bytes"},
    "export.cyclonedx": {"version"},
    "registry-move": {"bytes"},
    "registry-token-log": {"at", "actor"},
    "registry-publishers": {"by", "id"},
    "registry-members": {"by"},
    "registry-backup": {"rows", "schema"},
    "registry-restore": {"rows", "schema"},
    "registry-members.team": {"by"},
    "registry-members.invite": {"code", "link"},
    "registry-members.withdraw": {"by"},
    "registry-webhook-add": {"id", "secret", "url"},
    "registry-webhook-list": {"id", "url"},
    "registry-webhook-remove": {"id", "url"},
    "registry-webhook-test": {"id", "event", "ended"},
    "registry-webhook-deliveries": {"id", "event", "ended"},
    "export.router": {"threshold"},
    "route": {"cosine", "threshold"},
    "route.check": {"threshold"},
    "search.try": {"loss", "share", "cpu_s"},
    "serve": {"command"},
    "test": {
        "loss",
        "recorded_loss",
        "retention",
        "retention_worst",
        "recorded_text",
        "drift",
        "drift_low",
        "drift_high",
        "noise",
        "cpu_seconds",
        "engine",
    },
}
"""The same for one document: files that PEFT or SQLite wrote and cards are counted in it, weights are what a search found,
or a free port is among the words."""


@dataclass
class World:
    """Where the commands are typed, and what they said."""

    folder: Path
    adapt: Adapt
    ours: Running
    theirs: Running
    said: dict[str, Document] = field(default_factory=dict)

    @property
    def inside(self) -> Adapt:
        """The same library, from inside the project."""
        return Adapt(self.folder / "project", "../home")

    def says(self, name: str, *arguments: object, exit_code: int = 0, inside: bool = False) -> Document:
        """Type a command, keep its document under a name; `inside` the folder of the project."""
        done = (self.inside if inside else self.adapt)(*arguments, "--json")
        assert done.exit_code == exit_code, f"adapt {' '.join(map(str, arguments))}: {done.stderr}"
        assert name not in self.said, f"{name} is there twice"
        document = self.said[name] = json.loads(done.stdout)
        return document

    def refused(self, name: str, exit_code: int, *arguments: object) -> None:
        """Type a command that is refused."""
        self.said[name] = json.loads(self.adapt.fails(exit_code, *arguments, "--json"))

    def steady(self, name: str) -> Document:
        """The document of that name without what differs from run to run."""
        home = str(self.folder / "home")
        places = {f"{self.folder}/project/../home": home, home: "<home>", str(self.folder): "<folder>"}
        places |= {self.ours.url: "<server>", self.theirs.url: "<other server>"}
        return steady(self.said[name], places, facts=_FACTS | _FACTS_OF.get(name, set()))


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """The files and the servers; nothing is typed yet."""
    make_sandbox(folder, filled=False)
    make_adapter(folder / "out" / "unknown", width=WIDTH, base=HUB_ID, seed=7)
    loopback = parse_networks(("127.0.0.0/8",))
    ours_at = running(folder / "registry", derives=False, webhook_networks=loopback)
    with ours_at as ours, running(folder / "registry-2") as theirs:
        yield World(folder, Adapt(folder), ours, theirs)


def documents(made: World) -> dict[str, Document]:
    """Every document by its name, as the commands gave it."""
    for chapter in (
        _bases,
        _adapters,
        _weights,
        _keys,
        _remotes,
        _registry,
        _answers,
        _routing,
        _images,
        _engines,
        _project,
        _verbs,
        _away,
    ):
        chapter(made)
    return made.said


def _bases(w: World) -> None:
    w.says("base-add", "base", "add", "./models/base-7b", "--as", "base-7b")
    w.says("base-list", "base", "list")
    w.says("base-show", "base", "show", "base-7b")
    w.says("base-show.record", "base", "show", "base-7b", "--record")
    w.says("base-family", "base", "family")
    w.says("base-compare", "base", "compare", "base-7b", "./models/base-7b-fp16")
    w.adapt.ok("base", "add", "./models/base-7b-chat", "--as", "chat")
    w.says("base-set", "base", "set", "chat", "--hub-id", "acme/base-7b-chat")
    w.says("base-remove", "base", "remove", "chat")


def _adapters(w: World) -> None:
    w.says("add", "add", "./out/legal-qa", "--name", "legal-qa", "--base", "base-7b", "--task", "legal-qa")
    several = ("./out/legal-qa", "./models", "./downloads/diverged")
    w.says("add.several", "add", *several, "--task", "legal-qa", exit_code=3)
    w.adapt.ok("add", "./out/unknown", "--no-base")
    w.says("base-pin", "base", "pin", "unknown", "base-7b")
    w.says("install.dry-run", "install", SUMMARY, "--from", "./published", "--dry-run")
    w.says("install", "install", SUMMARY, "--from", "./published")
    w.says("list", "list")
    w.says("search", "search", "legal", "--base", "base-7b")
    w.says("info", "info", LEGAL)
    w.says("info.path", "info", LEGAL, "--path")
    w.says("verify", "verify", LEGAL, "./out/tables", "--base", "base-7b")
    w.says("audit", "audit", LEGAL, "--offline", exit_code=0)
    w.says("export.cyclonedx", "export", LEGAL, "--format", "cyclonedx")
    w.says("push.dry-run", "push", LEGAL, "--to", "./published", "--dry-run")
    w.says("push", "push", LEGAL, "--to", "./published")
    w.says("pull", "pull", LEGAL, "./pulled")
    w.says("explain", "explain", "E_RANK", "11")
    w.says("explain.skill", "explain", "--skill")
    w.says("mcp", "mcp")
    w.says("doctor", "doctor", "--offline")
    w.says("doctor.repair", "doctor", "--repair", "--dry-run")
    w.says("completion", "completion", "bash")
    w.refused(ERROR, 11, "install", "summarize@base-7b>=7", "--from", "./published")


def _weights(w: World) -> None:
    w.says("merge", "merge", "legal-qa", "summarize", "--weights", "0.7,0.3", "-o", "both")
    w.says("merge.folder", "merge", "legal-qa", "summarize", "--method", "svd", "--rank", "4", "-o", "./merged")
    w.says("merge.methods", "merge", "--methods")
    w.says("info.recipe", "info", "both", "--recipe")
    w.says("resize", "resize", "legal-qa", "--rank", "2")
    w.says("port.dry-run", "port", "legal-qa", "--to", "./models/base-7b-chat", "--dry-run")
    w.says("port", "port", "legal-qa", "--to", "./models/base-7b-chat", "--unproved", "-o", "moved")
    w.says("compare", "compare", "legal-qa", "summarize")
    w.says("extract", "extract", "./models/base-7b-chat", "--base", "base-7b", "--rank", "2", "-o", "chat")
    w.says("fuse", "fuse", "legal-qa", "-o", "./fused")


def _keys(w: World) -> None:
    w.says("key-new", "key", "new", "ann", "--unencrypted")
    w.says("key-show", "key", "show", "ann")
    w.says("key-trust", "key", "trust", "ann", "--scope", "acme/*", "--not-after", "2099-12-31")
    w.says("key-list", "key", "list")
    w.says("contract-policy", "contract", "policy", "off", "--max-age", "90d")
    w.says("key-policy", "key", "policy", "warn", "--namespace", "acme")
    w.says("key-sign", "key", "sign", LEGAL)
    w.says("key-untrust", "key", "untrust", "ann")
    w.adapt.ok("key", "new", "gone", "--unencrypted", "--root", "./elsewhere")
    w.says("key-revoke", "key", "revoke", "gone", "./elsewhere/keys/gone.pub", "--reason", "stolen")
    w.says("key-rotate", "key", "rotate", "gone", "here", "--unencrypted", "--offline", "--root", "./elsewhere")


def _remotes(w: World) -> None:
    w.says("remote-add", "remote", "add", "ours", w.ours.url, "--namespaces", TEAM)
    w.adapt.ok("key", "policy", "warn", "--remote", "ours")
    w.adapt.ok("remote", "add", "theirs", w.theirs.url)
    w.says("remote-login", "remote", "login", "ours", "--token", w.ours.token)
    w.adapt.ok("remote", "login", "theirs", "--token", w.theirs.token)
    w.says("remote-list", "remote", "list")
    w.says("push.server", "push", LEGAL, "--to", "acme/legal-qa-base-7b", "--remote", "ours")
    w.says("search.server", "search", "--remote", "ours", "--base", "base-7b")
    w.says("info.server", "info", "acme/legal-qa@base-7b", "--remote", "ours")
    w.says("compare.server", "compare", "acme/legal-qa-base-7b", "--remote", "ours")
    w.adapt.ok("alias", "set", "prod", "acme/legal-qa==1.0.0", "--remote", "ours")
    w.says("alias-keep", "alias", "keep", "acme/legal-qa@prod", "20", "--remote", "ours")
    w.adapt.ok("alias", "remove", "acme/legal-qa@prod", "--remote", "ours")
    w.says("mirror.dry-run", "mirror", "acme/legal-qa@base-7b", "--from", "ours", "--to", "theirs", "--dry-run")
    w.says("mirror", "mirror", "acme/legal-qa@base-7b", "--from", "ours", "--to", "theirs")
    version = ("acme/legal-qa==1.0.0", "--remote", "theirs")
    w.says("yank", "yank", *version, "--reason", "trained on leaked labels")
    w.says("yank.undo", "yank", *version, "--undo")
    w.says("delete", "delete", *version, "--yes")
    w.says("remote-logout", "remote", "logout", "ours")
    w.says("remote-remove", "remote", "remove", "theirs")


def _registry(w: World) -> None:
    here = ("--root", w.folder / "registry")
    w.says("registry-token-create", "registry", "token", "create", *here, "--user", "ben", "--namespaces", "acme/*")
    w.says("registry-token-list", "registry", "token", "list", *here)
    w.says("registry-token-revoke", "registry", "token", "revoke", "2", *here)
    w.says("registry-token-log", "registry", "token", "log", *here)
    w.says("registry-token-list.users", "registry", "token", "list", "--users", *here)
    w.says("registry-token-revoke.user", "registry", "token", "revoke", "--user", "ben", *here)
    with receiver() as got:
        hook = w.says("registry-webhook-add", "registry", "webhook", "add", "acme", got.url, *here)["id"]
        w.says("registry-webhook-test", "registry", "webhook", "test", hook, *here)
    w.says("registry-webhook-list", "registry", "webhook", "list", *here)
    w.says("registry-webhook-deliveries", "registry", "webhook", "deliveries", hook, *here)
    w.says("registry-webhook-remove", "registry", "webhook", "remove", hook, *here)
    key = w.folder / "home" / "keys" / "ann.pub"
    pin = ("--issuer", "https://ci.example.org", "--claim", "repository=acme/training")
    w.says("registry-publishers", "registry", "publishers", f"{TEAM}/legal-qa", *pin, *here)
    w.ours.registry.accounts.link("ben", "https://sso.example.org", "f:1:ben")
    w.says("registry-accounts", "registry", "accounts", *here)
    members = ("registry", "members", TEAM, *here)
    w.says("registry-members.team", *members, "--team", "legal", "--role", "write", "--repos", "legal-*,qa")
    w.says("registry-members.about", *members, "--about", "Adapters for contracts")
    number = w.says("registry-members.invite", *members, "--invite", "--team", "legal")["id"]
    w.says("registry-members.withdraw", *members, "--withdraw", number)
    w.adapt.json(*members, "--add", "ben", "--role", "read")
    w.says("registry-members", *members)
    w.says("registry-members.remove", *members, "--remove", "ben")
    w.says("registry-names", "registry", "names", TEAM, *here)
    w.says("registry-tests", "registry", "tests", TEAM, "--trust", f"ann={key}", *here)
    w.says("registry-check", "registry", "check", *here, "--bytes")
    w.says("registry-gc", "registry", "gc", *here, "--dry-run")
    w.says("registry-backup", "registry", "backup", w.folder / "registry-copy", *here)
    w.says("registry-restore", "registry", "restore", w.folder / "registry-copy", "--root", w.folder / "registry-4")
    w.says("registry-upgrade", "registry", "upgrade", *here, "--dry-run")
    many_adapters.write(w.folder / "arrivals" / "acme" / "imported", 1)
    w.says("registry-import", "registry", "import", w.folder / "arrivals", *here)
    w.says("registry-worker", "registry", "worker", *here, "--once")
    w.says("registry-meaning", "registry", "meaning", *here)
    alone = w.folder / "registry-3"
    w.said["registry-serve"] = _first_documents("registry", "serve", "--root", alone, count=2)
    w.said["ui"] = _first_documents("ui", "--root", w.adapt.library.root, count=1)[0]
    w.says("registry-move", "registry", "move", "--root", alone, "--database", f"sqlite:///{w.folder / 'moved.db'}")


def _first_documents(*words: object, count: int) -> list[Document]:
    """The documents that a command prints before it serves."""
    code = "from adapterhub.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, words), "--port", "0", "--json"]
    paths = [str(Path(__file__).resolve().parent.parent.parent / name) for name in (".", "registry")]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        found = [_next_document(process.stdout) for _ in range(count)]
        process.terminate()
    return found


def _next_document(stream: IO[str]) -> Document:
    """The next JSON document, on one line or on several."""
    text = ""
    while line := stream.readline():
        text += line
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(text)
    raise AssertionError(f"no document: {text}")


def _answers(w: World) -> None:
    """A small model that writes, and two adapters for it."""
    from peft import LoraConfig

    from tests.support.run_library import PROMPT, write_base
    from tests.support.tiny_models import llama, save_adapter

    write_base(w.folder / "models" / "talker", template=None)
    w.adapt.ok("base", "add", "./models/talker", "--as", "talker")
    for seed, name in enumerate(("plain", "polite"), 1):
        config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"])
        save_adapter(w.folder / "out" / name, llama, config, seed=seed)
        w.adapt.ok("add", f"./out/{name}", "--name", name, "--base", "talker")
    short = ("--max-new-tokens", 4)
    w.says("run", "run", "plain", PROMPT, "--prove-base", *short)
    w.says("run.compare", "run", "plain", PROMPT, "--compare", "polite,none", *short)
    rows = [{"prompt": PROMPT, "adapter": "polite", "id": "1"}, {"prompt": "No."}]
    (w.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    w.says("run.batch", "run", "plain", "--batch", "rows.jsonl", *short)
    examples = [{"prompt": PROMPT, "completion": " At sea."}, {"prompt": "Who?", "completion": " Ann."}]
    (w.folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
    tune = ("--tune", "examples.jsonl", "--tune-budget", 4)
    w.says("merge.tune", "merge", "plain", "polite", *tune, "-o", "tuned")
    w.says("search.try", "search", "plain", "--base", "talker", "--try", "examples.jsonl")
    asked = (PROMPT, "Who?", "The boat.", "No.", "Over there", "We see")
    inputs = [{"prompt": text, "completion": " At sea."} for text in asked]
    (w.folder / "inputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in inputs))
    record = ("--examples", "inputs.jsonl", "--max-new-tokens", 3, "--margin", 0, "--detached", "./beside")
    w.says("contract-record", "contract", "record", "plain", *record)
    w.says("test", "test", "plain", "--tests", "./beside/plain-1.0.0.tests.jsonl")
    w.adapt.ok("test", "plain", "--tests", "./beside/plain-1.0.0.tests.jsonl", "--sign", "--key", "ann")
    w.says("contract-results", "contract", "results", "plain")
    w.adapt.ok("remote", "login", "ours", "--token", w.ours.token)
    there = ("--to", "acme/plain", "--remote", "ours")
    w.adapt.ok("push", "plain", *there)
    w.says("push.results", "push", "plain", *there, "--results")
    w.says("contract-export", "contract", "export", "plain", "./task", "--tests", "./beside/plain-1.0.0.tests.jsonl")


def _routing(w: World) -> None:
    """A library of its own, with the model that compares texts."""
    own = replace(w, adapt=Adapt(w.folder, "routed"))
    library = own.adapt.library
    base = library.bases.add(make_base(w.folder / "models" / "small"), "small")
    library.catalog.put_base(base)
    fill(library, base, w.folder / "out" / "routed")
    own.says("route.check", "route", "--base", "small", "-o", "route.json")
    own.says("route", "route", "Please send Pia 4 stools for 60 euros.", "--file", "route.json")
    own.says("export.router", "export", "./route.json", "--format", "semantic-router", "-o", "route.yaml")


def _images(w: World) -> None:
    """A tiny pipeline that draws."""
    from tests.support.pipelines import sd15

    sd15().save_pretrained(w.folder / "models" / "painter")
    w.adapt.ok("base", "add", "./models/painter", "--as", "painter")
    size = ("--steps", 1, "--size", "16x16")
    w.says("run.image", "run", "none", "a red cat", "--base", "painter", "--image", "cat.png", *size)


def _engines(w: World) -> None:
    """A stand-in for vLLM: what is printed of it is its interpreter and its version."""
    make_adapter(w.folder / "out" / "rslora", width=WIDTH, base=HUB_ID, seed=8, use_rslora=True)
    targets = ("--base", "base-7b", "--engine", "vllm@0.32", "--engine", "sglang")
    w.says("verify.engine", "verify", LEGAL, "./out/rslora", *targets, exit_code=3)
    w.says("export.format", "export", LEGAL, "--format", "vllm", "-o", "./for-vllm")
    python = make_standin(w.folder / "vllm")
    w.says("serve.dry-run", "serve", "legal-qa", "--base", "base-7b", "--python", python, "--dry-run")
    with serving(w.adapt, python, "legal-qa") as (document, _):
        w.said["serve"] = document
    file = w.folder / "adapters.yaml"
    with running_engine("vllm") as engine:
        file.write_text(file_for(engine, legal="legal-qa", bad="nothing"))
        w.says("serve.sync", "serve", "--sync", file, "--dry-run")["url"] = "http://localhost:8000"


MERGE = """
[merges.both]
method = "svd"
options = { rank = 4 }
inputs = [ { adapter = "legal-qa", weight = 0.7 }, { adapter = "summarize", weight = 0.3 } ]
"""


def _project(w: World) -> None:
    (w.folder / "project").mkdir()
    w.says("init", "init", "--base", "base-7b", inside=True)
    places = ("--from", "../published")
    w.says("install.save", "install", "summarize", "legal-qa", *places, "--save", inside=True)
    with (w.folder / "project" / "adapters.toml").open("a") as file:
        file.write(MERGE)
    w.says("lock", "lock", inside=True)
    w.says("lock.check", "lock", "--check", inside=True)
    w.says("sync", "sync", inside=True)
    w.says("remote-trust", "remote", "trust", inside=True)
    w.says("remote-trust.list", "remote", "trust", "--list")
    w.says("remote-trust.revoke", "remote", "trust", "./project", "--revoke")
    w.says("tree.project", "tree", inside=True)
    w.says("tree.invert", "tree", "--invert", "legal-qa", inside=True)
    w.says("upgrade.check", "upgrade", "--check", "legal-qa", inside=True)
    w.says("upgrade.dry-run", "upgrade", "--dry-run", inside=True)
    w.says("upgrade", "upgrade", inside=True)
    w.says("export", "export", inside=True)
    w.says("list.format", "list", "--format", "vllm", inside=True)


def _verbs(w: World) -> None:
    w.says("alias-set", "alias", "set", "prod", "legal-qa")
    w.says("alias-list", "alias", "list")
    w.says("alias-history", "alias", "history", "legal-qa@prod")
    w.says("alias-remove", "alias", "remove", "legal-qa@prod")
    w.says("alias-rollback", "alias", "rollback", "legal-qa@prod")
    w.adapt.ok("alias", "remove", "legal-qa@prod")  # its build is removed below
    w.says("tree", "tree", "both")
    w.says("tree.holders", "tree", "--holders")
    w.says("compare.diff", "compare", "--diff", "legal-qa", "summarize")
    w.says("identify", "identify", "./out/legal-qa")
    w.says(
        "identify.files",
        "identify",
        "./out/legal-qa/adapter_model.safetensors",
        "./out/summarize/adapter_model.safetensors",
    )
    w.says("compare.alike", "compare", "both")
    w.says("compare.groups", "compare")
    space = w.says("cache-show", "cache", "show")
    # fingerprints are kept for files that nobody is just writing, which these may be
    space["other"] = [one for one in space["other"] if one["name"] != "cache"]
    w.inside.ok("remove", "both", "legal-qa", "--save", "--yes")
    w.says("upgrade.library", "upgrade", "summarize", "--from", "./team")
    w.inside.ok("install", "summarize==1.1.0", "--save", "--no-sync")
    w.says("upgrade.undo", "upgrade", "--undo", "summarize", inside=True)


def _away(w: World) -> None:
    w.says("remove", "remove", "summarize", "--yes")
    w.says("cache-clean", "cache", "clean", "--dry-run", "--grace", "0")


# ---------------------------------------------------------------- what stays the same
_SAME = [
    (re.compile(r"sha256:[0-9a-f]{64}"), "sha256:<64 hex>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<64 hex>"),
    (re.compile(r"\b[0-9a-f]{40}\b"), "<commit>"),
    (re.compile(r"base-sha256:[0-9a-f]{32}"), "base-sha256:<32 hex>"),
    (re.compile(r"\bhf_adp_[a-z0-9]{32}_[0-9a-f]{8}\b"), "<token>"),
    (re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+(Z|\+00:00)"), "<time>"),
    (re.compile(r"(http://127\.0\.0\.1:)\d+"), r"\1<port>"),
    (re.compile(r"(?<=/\?token=)[\w-]{32}$"), "<token>"),
    (re.compile(r"(?<=/)[0-9a-f]{12}(?=/|$|-)"), "<12 hex>"),
    (re.compile(r"sha256:[0-9a-f]{12}\b"), "sha256:<12 hex>"),
]
FEW, MANY = 2, 4
"""Of a list of more than so many things, so many are shown."""
SMALL = 1e-3
"""Below this a number is an error of rounding, and becomes 0."""


def steady(value: Document, places: dict[str, str], name: str = "", *, facts: AbstractSet[str] = _FACTS) -> Document:
    """The value with places, digests, keys, times and `facts` replaced, and numbers to three digits."""
    if name in facts and value is not None and not isinstance(value, dict | bool):
        return f"<{_kind(value)}>"
    if isinstance(value, dict):
        return {key: steady(item, places, key, facts=facts) for key, item in value.items()}
    if isinstance(value, list):
        kept = value[:FEW] if len(value) > MANY and not isinstance(value[0], str) else value
        return [steady(item, places, facts=facts) for item in kept] + ["<more>"] * (len(kept) < len(value))
    if isinstance(value, float):
        return 0.0 if abs(value) < SMALL else float(f"{value:.3g}")
    if isinstance(value, str):
        for place, told in places.items():
            value = value.replace(place, told)
        for pattern, told in _SAME:
            value = pattern.sub(told, value)
    return value


def _kind(value: Document) -> str:
    kinds: dict[type, str] = {str: "text", int: "number", float: "number", list: "list"}
    return kinds[type(value)]
