"""Ann, who signs and publishes, and Ben, who installs: two libraries that know the same base, and Ann's key."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.formats.signature import Bundle, pre_authentication
from adapterhub.trust.signing.keys import KeyFolder
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

SIGNATURE = "model.sig"


@dataclass(frozen=True)
class Homes:
    folder: Path
    ann: Adapt
    ben: Adapt

    @property
    def published(self) -> Path:
        return self.folder / "published"

    def add(self, version: str, *, name: str = "legal-qa", **adapter: Any) -> None:
        """A new adapter of Ann's."""
        seed = len(list((self.folder / "out").glob("*"))) if (self.folder / "out").exists() else 0
        made = make_adapter(self.folder / "out" / f"{name}-{version}-{seed}", seed=seed, **adapter)
        self.ann.ok("add", made, "--name", name, "--version", version, "--base", "base-7b")

    def publish(
        self, version: str, *, name: str = "legal-qa", key: str = "ann", sign: bool = True, **adapter: Any
    ) -> Path:
        """Added, signed and pushed to the directory; its folder there."""
        self.add(version, name=name, **adapter)
        signing = ["--sign", "--key", key] if sign else []
        self.ann.ok("push", f"{name}=={version}", "--to", "./published", *signing)
        return self.build(version, name=name)

    def build(self, version: str, *, name: str = "legal-qa") -> Path:
        [folder] = (self.published / name).glob(f"{version}-*")
        return folder

    def install(self, spec: str = "legal-qa@base-7b", *options: str) -> tuple[str, ...]:
        return ("install", spec, "--from", "./published", *options)

    def trust(self, key: str = "ann", *options: str) -> None:
        """Ben trusts a key of Ann's."""
        self.ben.ok("key", "trust", key, self.ann.folder / self.ann.home / "keys" / f"{key}.pub", *options)

    def new_key(self, name: str) -> None:
        self.ann.ok("key", "new", name, "--unencrypted")

    def is_installed(self, name: str = "legal-qa") -> bool:
        return self.ben("info", name, "--path").exit_code == 0

    # ------------------------------------------------------------ what an attacker does
    def rewrite(self, path: Path, change: Callable[[dict[str, Any]], None], *, key: str | None = None) -> None:
        """Change what a signature says; signed again with `key`, or left with the signature it had."""
        bundle = Bundle.parse(path.read_bytes())
        statement = json.loads(bundle.payload)
        change(statement)
        payload = json.dumps(statement).encode()
        hint, signature = bundle.hint, bundle.signature
        if key:
            opened = KeyFolder(self.ann.folder / self.ann.home).open(key, None)
            hint, signature = opened.public.fingerprint, opened.sign(pre_authentication(payload))
        replace_file(path, Bundle(hint=hint, payload=payload, signature=signature).to_bytes())


def make_homes(folder: Path) -> Homes:
    make_base(folder / "models" / "base-7b")
    homes = Homes(folder=folder, ann=Adapt(folder, "ann"), ben=Adapt(folder, "ben"))
    for home in (homes.ann, homes.ben):
        home.ok("base", "add", "./models/base-7b", "--as", "base-7b")
    homes.new_key("ann")
    return homes


def replace_file(path: Path, data: bytes) -> None:
    """Other bytes in the place of a file that may be read-only or shared."""
    path.unlink()
    path.write_bytes(data)


def statement_of(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(base64.b64decode(json.loads(path.read_bytes())["dsseEnvelope"]["payload"]))
    return value
