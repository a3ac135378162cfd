"""What a check is given: the client, a folder of its own, and fresh repositories and tokens."""

from __future__ import annotations

import itertools
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi

CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "org/base",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj"],
}
WEIGHTS = bytes(range(256)) * 40

CHECKS: dict[str, Callable[[Client], None]] = {}


class Client:
    """`prefix` keeps the repositories of one run apart from those of another."""

    def __init__(self, url: str, token: str, folder: Path, prefix: str) -> None:
        self.url, self.token, self.folder, self.prefix = url, token, folder, prefix
        self.api = HfApi(endpoint=url, token=token)
        self._numbers = itertools.count()

    def name(self) -> str:
        # letters only, so that no two look alike
        number, text = next(self._numbers), ""
        for _ in range(3):
            number, digit = divmod(number, 20)
            text += "abcdefghjkmnpqrstuvw"[digit]
        return f"{self.prefix}/{self.folder.name[:30].replace('_', '')}{text}"

    def repo(self, **files: bytes | str) -> str:
        """A new repository with these files; a name's `__` stands for a dot."""
        repo = self.name()
        self.api.create_repo(repo)
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            self.api.upload_file(path_or_fileobj=data, path_in_repo=name.replace("__", "."), repo_id=repo)
        return repo

    def files(self, repo: str, revision: str | None = None) -> list[str]:
        """The files of a repository, besides the one that a new repository has."""
        return [name for name in self.api.list_repo_files(repo, revision=revision) if name != ".gitattributes"]

    def adapter(self, card: str = "") -> str:
        """A new repository with a PEFT adapter."""
        repo = self.name()
        self.api.create_repo(repo)
        self.api.upload_folder(repo_id=repo, folder_path=self.adapter_folder(card))
        return repo

    def adapter_folder(self, card: str = "") -> Path:
        folder = self.folder / "adapter"
        (folder / "sub" / "deep").mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
        (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
        (folder / "README.md").write_text(card or "---\nlicense: mit\n---\n# An adapter\n")
        (folder / "sub" / "notes.txt").write_text("notes")
        (folder / "sub" / "deep" / "more.txt").write_text("more")
        return folder

    def file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def as_user(self, role: str, *namespaces: str) -> HfApi:
        """The client of another user."""
        body = json.dumps({"user": "bob", "role": role, "namespaces": list(namespaces)}).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/api/adapt/v1/tokens", body, headers, method="POST")
        with urllib.request.urlopen(request) as answer:
            return HfApi(endpoint=self.url, token=json.load(answer)["token"])

    @property
    def anonymous(self) -> HfApi:
        return HfApi(endpoint=self.url, token=False)

    def read(self, repo: str, path: str, **options: object) -> bytes:
        """A file as the client downloads it, into a cache of this check's own."""
        options.setdefault("cache_dir", self.folder / "cache")
        return Path(self.api.hf_hub_download(repo, path, **options)).read_bytes()


def check(function: Callable[[Client], None]) -> Callable[[Client], None]:
    """Make a function one of the checks."""
    CHECKS[function.__name__] = function
    return function


def raises(kind: type[BaseException] | tuple[type[BaseException], ...], call: Callable[[], object]) -> BaseException:
    """What `call` raised, which must be of this very kind."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"nothing was raised, expected {kind}")


def status_of(error: BaseException) -> int:
    return error.response.status_code  # type: ignore[attr-defined, no-any-return]
