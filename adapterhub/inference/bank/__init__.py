"""Many adapters on one frozen base at the same time, chosen per call.

    with AdapterBank(model) as bank:
        bank.load("legal-qa")
        bank.load("./summarize", name="short")
        with bank.use("legal-qa"):
            model.generate(...)
        with bank.rows(["legal-qa", None, {"legal-qa": 0.5, "short": 0.5}]):
            model.generate(...)

The bank replaces no module of the base: hooks on the base's own modules add the updates. A context variable holds the
choice of adapters, so two threads, or two tasks of an event loop, can run different adapters at once.
"""

from __future__ import annotations

from adapterhub.inference.bank.adapter_bank import AdapterBank
from adapterhub.inference.bank.following import FollowedAlias
from adapterhub.inference.bank.residency import Stats
from adapterhub.inference.bank.updates import Choice, Using
from adapterhub.inference.effect import Effect

__all__ = ["AdapterBank", "Choice", "Effect", "FollowedAlias", "Stats", "Using"]
