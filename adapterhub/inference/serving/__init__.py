"""Handing adapters out to an inference engine: found, checked against the served base, leased, and named by digest.

No engine checks an adapter. One with a NaN spoils every later answer, one for another base answers wrongly with HTTP
200, and one whose folder is deleted ends the engine. `AdapterProvider` is the check in front of all of them.
"""

from adapterhub.inference.serving.provider import AdapterProvider, Handed
from adapterhub.inference.serving.refusal import Refusal, refusal_of
from adapterhub.inference.serving.settings import ServeSettings

__all__ = ["AdapterProvider", "Handed", "Refusal", "ServeSettings", "refusal_of"]
