"""What a server knows of a part (the database, the bucket) that does not answer.

To wait for such a part takes a thread for some seconds, and a server has forty. So the first call that waited in vain
trips the fuse of the part. From then on calls fail at once, but for one each second, which tries the part again. A part
that refuses at once needs no fuse.
"""

from __future__ import annotations

import threading
import time
from typing import Final

PAUSE_S: Final = 1.0


class Fuse:
    """The fuse of one part, for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tried_at = 0.0
        self._by = 0
        self.tripped = False

    def passes(self) -> bool:
        """Return whether a call may go to the part; the thread that tries a tripped one may go on calling it."""
        if not self.tripped:
            return True
        with self._lock:
            me, now = threading.get_ident(), time.monotonic()
            if self.tripped and me != self._by:
                if now < self._tried_at + PAUSE_S:
                    return False
                self._tried_at, self._by = now, me
            return True

    def trip(self) -> None:
        """Note that the part did not answer."""
        with self._lock:
            self.tripped, self._tried_at, self._by = True, time.monotonic(), 0

    def mend(self) -> None:
        """Note that the part answered."""
        self.tripped = False
