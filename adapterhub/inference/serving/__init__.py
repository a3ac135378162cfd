"""Provides adapters to an inference engine: finds them, checks them against the served base, and leases their folders.

No engine checks an adapter. One with a NaN spoils every later answer, one for another base gives wrong answers with
HTTP 200, and one whose folder is deleted ends the engine. `AdapterProvider` does the checks for all engines.
"""

from adapterhub.inference.serving.following import UnreachableRemotes
from adapterhub.inference.serving.provider import AdapterProvider, LeasedAdapter
from adapterhub.inference.serving.refusal import refusal_of
from adapterhub.inference.serving.settings import ServeSettings

__all__ = ["AdapterProvider", "LeasedAdapter", "ServeSettings", "UnreachableRemotes", "refusal_of"]
