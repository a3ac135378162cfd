"""Signing in and out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInPage:
    """The form that takes a token; `problem` says why the last one was refused. `then` is the page to return to."""

    then: str
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session that a sign-in opened: the value of its cookie, and its length in seconds."""

    cookie: str
    lasts_s: int
