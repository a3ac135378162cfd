"""Proves that the base has not changed since the bank was made."""

from __future__ import annotations

import threading

from adapterhub.core.digests import Digest
from adapterhub.core.errors import DigestMismatch
from adapterhub.inference.loader.base.model import BaseModel
from adapterhub.inference.loader.identity import LoadedBase, sample_base

_HINT = "load the base again, and find what wrote to it: an adapter bank never does"


class FrozenBase:
    """Compares the base with itself. `at_start` holds the samples of its tensors from before anything ran.

    The digest is taken at the first check, not at the start: it reads the whole base, which would delay a bank on 13 GB
    by seconds.
    """

    def __init__(self, base: BaseModel, at_start: LoadedBase) -> None:
        self._base = base
        self._at_start = at_start
        self._digest: Digest | None = None
        self._lock = threading.Lock()

    def check(self) -> Digest:
        """The digest of the base.

        Raises:
            DigestMismatch: a tensor has changed.
        """
        with self._lock:
            if self._digest is None:
                self._compare_samples()
            actual = self._base.digest()
            if self._digest is None:
                self._digest = actual
            if actual != self._digest:
                raise DigestMismatch("the base model in memory", expected=self._digest, actual=actual, hint=_HINT)
            return actual

    def _compare_samples(self) -> None:
        before, now = self._at_start.samples, sample_base(self._base).samples
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if changed:
            raise DigestMismatch(
                f"the base model in memory, `{changed[0]}`" + (f" and {len(changed) - 1} more" if changed[1:] else ""),
                expected="the numbers sampled when the bank was made",
                actual="other numbers",
                hint=_HINT,
            )
