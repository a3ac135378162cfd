"""The file that lists the adapters that a running engine should have, in the form of the lora-syncer of Kubernetes.

The form was read in `tools/dynamic-lora-sidecar/sidecar/validation.yaml` of the repository
kubernetes-sigs/gateway-api-inference-extension, which had the syncer until commit 365a1c0b of April 2026. A `source` is
a SPEC here, where the syncer took an id of the Hub.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapterhub.core.errors import SAVE_UTF8, Malformed, SpecError, problem_list, shown
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.cards.metadata import Metadata, UnreadableCard, read_yaml

ROOT: Final = "vLLMLoRAConfig"
DEFAULT_PORT: Final = 8000
MOST_CHARACTERS: Final = 1 << 20
"""A ConfigMap holds no more."""

_KEYS: Final = ("name", "host", "port", "defaultBaseModel", "ensureExist", "ensureNotExist")
_MODEL_KEYS: Final = ("id", "source", "base-model")
_HOST: Final = re.compile(r"[A-Za-z0-9_.-]{1,253}|\[?[0-9A-Fa-f:.]{2,45}\]?")
_MOST_ID: Final = 200
_MOST_PORT: Final = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedAdapter:
    """One entry of `ensureExist`. `base` is its `base-model`, or the default one, or empty."""

    id: str
    source: str
    base: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedAdapters:
    """The contents of the file. `url` is where the engine answers, `base` the default base, empty if none is named.

    `unwanted` are the ids of `ensureNotExist`. `problems` are entries that cannot be used, one sentence each with the
    line; the engine keeps its adapters under their ids, and `kept` has these ids.
    """

    url: str
    base: str
    adapters: tuple[WantedAdapter, ...]
    unwanted: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()

    @classmethod
    def parse(cls, data: bytes, path: Path) -> WantedAdapters:
        """Read the bytes of a file; `path` is for messages.

        Raises:
            Malformed: it is not such a file. Wrong entries are `problems`.
        """
        name = shown(str(path), 200)
        try:
            read = read_yaml(data.decode("utf-8"), most_characters=MOST_CHARACTERS)
        except UnicodeDecodeError:
            raise Malformed(f"`{name}` is not UTF-8", hint=SAVE_UTF8) from None
        except UnreadableCard as error:
            raise Malformed(
                f"`{name}` cannot be read: {str(error).removeprefix('metadata ')}",
                hint="check its permissions and the disk with `ls -l`",
            ) from None
        file = _File(read)
        made = file.read()
        if file.faults:
            raise Malformed(problem_list(f"`{name}` does not say which adapters to load", file.faults), hint=file.hint)
        assert made is not None  # otherwise there is a fault
        return made


class _File:
    """One reading. `faults` are of the whole file, `problems` of entries."""

    def __init__(self, read: Metadata) -> None:
        self._values, self._lines = read.values, read.lines
        self.faults: list[str] = []
        self.problems: list[str] = []
        self.kept: set[str] = set()
        self.hint = ""

    def read(self) -> WantedAdapters | None:
        top = self._values.get(ROOT)
        if not isinstance(top, Mapping):
            self.faults.append(f"expected the key `{ROOT}` with a mapping" + self._at(ROOT))
            if self._values.get("kind") == "ConfigMap":
                self.hint = "this is a ConfigMap itself; give the file that it holds, as a pod that mounts it sees it"
            return None
        self._ensure_known(top, ROOT, _KEYS, self.faults)
        host, port = top.get("host", "localhost"), top.get("port", DEFAULT_PORT)
        if not isinstance(host, str) or not _HOST.fullmatch(host):
            self._fault("host", "expected the name or address of a host, without `http://` and without a port")
        if type(port) is not int or not 0 < port <= _MOST_PORT:
            self._fault("port", "expected a number from 1 to 65535")
        base = top.get("defaultBaseModel", "")
        if not isinstance(base, str):
            self._fault("defaultBaseModel", "expected text")
        self._ensure_text(top, "name")
        exist = [*self._entries(top, "ensureExist", is_wanted=True)]
        unwanted = frozenset(one.id for one in self._entries(top, "ensureNotExist", is_wanted=False))
        if self.faults:
            return None
        adapters = [*self._alone(exist, unwanted)]
        where = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return WantedAdapters(
            url=f"http://{where}:{port}",
            base=base,
            adapters=tuple(WantedAdapter(id=one.id, source=one.source, base=one.base or base) for one in adapters),
            unwanted=unwanted - self.kept,
            kept=frozenset(self.kept),
            problems=tuple(self.problems),
        )

    def _alone(self, exist: list[WantedAdapter], unwanted: frozenset[str]) -> Iterator[WantedAdapter]:
        """Those whose id stands once in the file."""
        ids = [one.id for one in exist]
        for id_ in dict.fromkeys(ids):
            if id_ in unwanted:
                self._keep(id_, f"`{shown(id_)}` stands in `ensureExist` and in `ensureNotExist`")
            elif ids.count(id_) > 1:
                self._keep(id_, f"`{shown(id_)}` stands {ids.count(id_)} times in `ensureExist`")
        yield from (one for one in exist if one.id not in self.kept)

    def _keep(self, id_: str, problem: str) -> None:
        self.problems.append(problem)
        self.kept.add(id_)

    def _entries(self, top: Mapping[str, Any], key: str, *, is_wanted: bool) -> Iterator[WantedAdapter]:
        section = top.get(key)
        if section is None:
            return
        models = section.get("models") if isinstance(section, Mapping) else None
        if not isinstance(models, list):
            self._fault(f"{key}.models" if isinstance(section, Mapping) else key, "expected `models:` with a list")
            return
        self._ensure_known(section, f"{ROOT}.{key}", ("models",), self.faults)
        for at, entry in enumerate(models):
            place = f"{ROOT}.{key}.models[{at}]"
            before = len(self.problems)
            id_ = entry.get("id") if isinstance(entry, Mapping) else None
            if not isinstance(entry, Mapping):
                self._problem(place, "expected `id` and `source`")
            else:
                self._check(entry, place, is_wanted=is_wanted)
            if len(self.problems) == before:
                yield WantedAdapter(id=entry["id"], source=entry.get("source", ""), base=entry.get("base-model", ""))
            elif isinstance(id_, str) and id_:
                self.kept.add(id_)

    def _check(self, entry: Mapping[str, Any], place: str, *, is_wanted: bool) -> None:
        self._ensure_known(entry, place, _MODEL_KEYS, self.problems)
        id_, source, base = entry.get("id"), entry.get("source"), entry.get("base-model", "")
        if not isinstance(id_, str) or not id_.strip() or not id_.isprintable() or len(id_) > _MOST_ID:
            self._problem(f"{place}.id", f"expected printable text of at most {_MOST_ID} characters; quote a number")
        if not isinstance(base, str):
            self._problem(f"{place}.base-model", "expected text")
        if not is_wanted:
            return
        if not isinstance(source, str):
            self._problem(f"{place}.source", "expected a SPEC, such as `legal-qa@prod` or `acme/legal-qa>=1.2`")
            return
        try:
            AdapterSpec.parse(source)
        except SpecError as error:
            self._problem(f"{place}.source", f"`{shown(source)}` is not a SPEC: {error.reason}")

    # ------------------------------------------------------------ what is wrong
    def _ensure_known(self, mapping: Mapping[str, Any], place: str, known: Iterable[str], into: list[str]) -> None:
        for key in mapping.keys() - {*known}:
            near = difflib.get_close_matches(key, known, 1)
            meant = f"; did you mean `{near[0]}`?" if near else ""
            into.append(f"`{shown(f'{place}.{key}')}`: no such key{meant}{self._at(f'{place}.{key}')}")

    def _ensure_text(self, top: Mapping[str, Any], key: str) -> None:
        if not isinstance(top.get(key, ""), str):
            self._fault(key, "expected text")

    def _fault(self, key: str, words: str) -> None:
        self.faults.append(f"`{ROOT}.{key}`: {words}{self._at(f'{ROOT}.{key}')}")

    def _problem(self, place: str, words: str) -> None:
        self.problems.append(f"`{shown(place)}`: {words}{self._at(place)}")

    def _at(self, place: str) -> str:
        """Return the line of a key, or of the nearest that has it."""
        while place and place not in self._lines:
            place = re.sub(r"(?:^|\.)[^.\[]*$|\[\d+\]$", "", place)
        return f" (line {self._lines[place]})" if place else ""
