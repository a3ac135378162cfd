"""The engines whose adapters can be exchanged while they run: their routes, and how a request names an adapter.

Sources: the wheels of vLLM 0.32 (`entrypoints/serve/lora/`, `entrypoints/openai/models/serving.py`) and of SGLang
0.5.23 (`srt/entrypoints/http_server.py`, `srt/managers/tokenizer_control_mixin.py`).
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from packaging.version import InvalidVersion, Version

from adapterhub.core.digests import strict_json
from adapterhub.core.errors import EngineFailed, UsageProblem, shown
from adapterhub.inference.serving.effects import COMPLETION, POOLING, Told, told_in

_LOOK_S: Final = 10.0
_WORK_S: Final = 600.0
"""SGLang ends the requests that run with an adapter before it unloads it."""

_MOST_BYTES: Final = 8 << 20
_SHOWN: Final = 300


class EngineAway(EngineFailed):
    """The engine does not answer, or is not ready."""

    usual_hint = "check its address, and wait until it has loaded its model"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """One engine: the paths of its routes, and the environment variable that has its key.

    `about` is the route with its version. `least` is the oldest version in which another build under the same name
    never gets the cached prompts of the build before. `joins`: a request names an adapter as `base:adapter`.
    """

    name: str
    load: str
    unload: str
    about: str
    key_variable: str
    start: str
    least: str = ""
    joins: bool = False


KINDS: Final[Mapping[str, EngineKind]] = {
    kind.name: kind
    for kind in (
        EngineKind(
            name="vllm",
            load="/v1/load_lora_adapter",
            unload="/v1/unload_lora_adapter",
            about="/version",
            key_variable="VLLM_API_KEY",
            start="start vLLM with `--enable-lora` and the variable VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
            least="0.32",
        ),
        EngineKind(
            name="sglang",
            load="/load_lora_adapter",
            unload="/unload_lora_adapter",
            about="/server_info",
            key_variable="SGLANG_API_KEY",
            start="start SGLang with `--enable-lora --max-lora-rank N --lora-target-modules all`",
            joins=True,
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAbout:
    """The version of an engine, and the folder or Hub id of its base; empty if it reports none here."""

    version: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineModels:
    """What an engine lists: the name of its base, from where it read it, and by name the folder of each adapter.

    Anyone who changes the engine also changes `adapters`.
    """

    base: str
    root: str
    adapters: dict[str, str]


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """An engine that answers at `url`; `key` is sent as a bearer token, if there is one. Every method blocks."""

    kind: EngineKind
    url: str
    key: str = ""

    def about(self) -> EngineAbout:
        """Its version and its base.

        Raises:
            EngineAway: it does not answer.
            EngineFailed: something else answers.
            UsageProblem: it is too old.
        """
        status, value = self._ask("GET", self.kind.about, None, _LOOK_S)
        version = value.get("version") if isinstance(value, Mapping) else None
        if not isinstance(version, str):
            words = f"`{self.url}{self.kind.about}` does not tell the version of {self.kind.name} (HTTP {status})"
            raise EngineFailed(words, hint=self._key_hint(status))
        least = self.kind.least
        try:
            made = Version(version)
            is_old = bool(least) and not made.is_devrelease and made.release < Version(least).release
        except InvalidVersion:
            is_old = False
        if is_old:
            raise UsageProblem(
                f"{self.kind.name} {shown(version)} runs at `{self.url}`, and {least} or later is needed: earlier ones "
                "may answer with cached prompts of the adapter that had a name before",
                hint=f"update {self.kind.name} to {least} or later",
            )
        model = value.get("model_path")
        return EngineAbout(version=version, model=model if isinstance(model, str) else self.models().root)

    def models(self) -> EngineModels:
        """Return the adapters that it has loaded.

        Raises:
            EngineAway: it does not answer.
            EngineFailed: it refuses, or answers in another form.
        """
        status, value = self._ask("GET", "/v1/models", None, _LOOK_S)
        try:
            cards = [(card["id"], card.get("root") or "", card.get("parent")) for card in value["data"]]
            base, root, _ = next(card for card in cards if card[2] is None)
            adapters = {str(name): str(root) for name, root, parent in cards if parent is not None}
        except (KeyError, TypeError, AttributeError, StopIteration):
            words = f"`{self.url}/v1/models` is no list of models (HTTP {status})"
            raise EngineFailed(words, hint=self._key_hint(status)) from None
        return EngineModels(base=str(base), root=str(root), adapters=adapters)

    def load(self, name: str, folder: Path) -> None:
        """Load a folder under a name that is free.

        Raises:
            EngineAway, EngineFailed: it did not; with its reason.
        """
        self._change(self.kind.load, {"lora_name": name, "lora_path": str(folder)}, "load", name)

    def unload(self, name: str) -> None:
        """Take an adapter out; requests that run with it end normally.

        Raises:
            EngineAway, EngineFailed: it did not; with its reason.
        """
        self._change(self.kind.unload, {"lora_name": name}, "unload", name)

    def ask(self, base: str, adapter: str | None) -> Told | None:
        """Ask the question of `effects`, with the adapter or without; None if the engine refuses.

        Raises:
            EngineAway: it does not answer.
        """
        name = base if adapter is None else f"{base}:{adapter}" if self.kind.joins else adapter
        for route, question in (("/v1/completions", COMPLETION), ("/v1/embeddings", POOLING)):
            status, value = self._ask("POST", route, {**question, "model": name}, _WORK_S)
            if status == HTTPStatus.OK:
                return told_in(value)
        return None

    # ------------------------------------------------------------ HTTP
    def _change(self, route: str, body: Mapping[str, Any], verb: str, name: str) -> None:
        status, value = self._ask("POST", route, body, _WORK_S)
        if status == HTTPStatus.OK:
            return
        hint = self._key_hint(status)
        if status == HTTPStatus.NOT_FOUND and not (isinstance(value, Mapping) and "error" in value):
            hint = self.kind.start  # no such route
        if status == HTTPStatus.FORBIDDEN:
            hint = hint or "an engine that `adapt serve` started loads what requests name, and nothing by path"
        raise EngineFailed(f"{self.kind.name} did not {verb} `{shown(name)}`: {_reason(status, value)}", hint=hint)

    def _key_hint(self, status: int) -> str:
        return f"{self.kind.key_variable} has the engine's key" if status == HTTPStatus.UNAUTHORIZED else ""

    def _ask(self, method: str, route: str, body: Mapping[str, Any] | None, within_s: float) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + route, data, headers, method=method)  # noqa: S310 - http, by `wanted`
        try:
            with _OPENER.open(request, timeout=within_s) as answer:
                return answer.status, _value(answer.read(_MOST_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                status, value = error.code, _value(error.read(_MOST_BYTES))
            if status in {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}:
                raise EngineAway(f"the engine at `{self.url}` is not ready (HTTP {status})") from None
            return status, value
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise EngineAway(f"no engine answers at `{self.url}`: {shown(str(reason), 200)}") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An engine does not redirect, and its key is for no other server."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
"""Without the proxies of the environment, which are for the registry."""


def _value(data: bytes) -> Any:
    try:
        return strict_json(data, limit_bytes=_MOST_BYTES, finite=False)
    except ValueError:
        return data.decode("utf-8", "replace")


def _reason(status: int, value: Any) -> str:
    """Return the words of an error, in the forms of both engines."""
    words: Any = value
    if isinstance(value, Mapping):
        error = value.get("error")
        words = error.get("message") if isinstance(error, Mapping) else None
        words = words or value.get("error_message") or value.get("message") or value.get("detail") or error
    return shown(str(words).strip(), _SHOWN) if words else f"HTTP {status}"
