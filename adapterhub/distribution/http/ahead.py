"""Answers that a server gave before their requests, which are then not sent."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from http import HTTPStatus

from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # public, not re-exported


class Ahead:
    """What one server answered, by path and query: a body, or the code of its error."""

    def __init__(self, endpoint: str, http: str) -> None:
        """`http` names the HTTP library of the Hub's client."""
        self._endpoint, self._http = endpoint, http
        self._answers: dict[str, bytes | str] = {}

    def take(self, answers: Mapping[str, bytes | str]) -> None:
        """Keep some answers."""
        self._answers |= answers

    def forget(self) -> None:
        """Drop what may be old soon: all but files at commits."""
        self._answers = {path: told for path, told in self._answers.items() if _is_fixed(path)}

    def told(self, path: str) -> bytes | None:
        """The body for a request; None where none came. Raises the error of the Hub's client that the answer is.

        Files at a commit never change, so they stay; all else counts once.
        """
        told = self._answers.get(path) if _is_fixed(path) else self._answers.pop(path, None)
        if isinstance(told, str):
            http = sys.modules[self._http]
            request = http.Request("GET", f"{self._endpoint}/{path}")
            hf_raise_for_status(http.Response(HTTPStatus.NOT_FOUND, headers={"X-Error-Code": told}, request=request))
        return told if isinstance(told, bytes) else None


def _is_fixed(path: str) -> bool:
    return "/resolve/" in path
