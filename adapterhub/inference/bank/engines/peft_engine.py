"""The engine for adapters that hooks cannot run: PEFT's own layers, put on the model for one block at a time.

PEFT wraps modules of the base, which affects every caller of the model. So such a choice has exclusive use of the model
from the beginning of its `with` block to the end: it waits for running forward passes, and others wait for it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from torch import nn
from torch.utils.hooks import RemovableHandle

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.distribution.finding import FoundAdapter
from adapterhub.inference.bank.engine import LoadedAdapter
from adapterhub.inference.bank.selection import Current, Selection, Using
from adapterhub.inference.bank.tracing import doors
from adapterhub.inference.bank.updates import Args, Kwargs, Output
from adapterhub.inference.loader.attachment import Attached
from adapterhub.inference.loader.injection import ReadyAdapter
from adapterhub.library.store.catalog import AdapterLike

if TYPE_CHECKING:
    from typing_extensions import Self


class Alone:
    """The choice of an adapter that PEFT puts on the model, whose layers change the outputs themselves."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.is_on = False

    def apply(self, _name: str, _args: Args, _kwargs: Kwargs, output: Output, /) -> Output:
        """The output, unchanged."""
        return output


class Turnstile:
    """A lock that many forward passes share, or that one choice holds exclusively."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._passing: Counter[int] = Counter()
        self._alone: Selection | None = None
        self._holder = 0  # the thread that closed it

    def enter(self, selection: Selection | None) -> None:
        """Begin a forward pass of `selection`; waits while another choice has exclusive use of the model.

        Raises:
            UsageProblem: another task of this thread has it, or `selection` needs it and does not have it.
        """
        if isinstance(selection, Alone) and not selection.is_on:
            raise UsageProblem(
                f"`{shown(selection.label)}` runs on PEFT's layers, which are not on the model outside its block",
                hint="with bank.use(…): model(…)",
            )
        with self._changed:
            if self._alone is not selection:
                self._wait_for(lambda: self._alone is None or self._alone is selection)
            self._passing[threading.get_ident()] += 1

    def leave(self) -> None:
        """End a forward pass."""
        with self._changed:
            me = threading.get_ident()
            self._passing[me] -= 1
            if self._passing[me] <= 0:
                del self._passing[me]
                if self._alone is None:
                    self._changed.notify_all()

    def close(self, selection: Selection) -> None:
        """Give `selection` exclusive use of the model, after all running passes of other threads.

        Raises:
            UsageProblem: another task of this thread has it, and could never end while this one waits.
        """
        with self._changed:
            me = threading.get_ident()
            self._wait_for(lambda: self._alone is None and self._passing.keys() <= {me})
            self._alone, self._holder = selection, me

    def open(self) -> None:
        """End the exclusive use."""
        with self._changed:
            self._alone = None
            self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Exclusive use of the model for the block."""
        self.close(Alone(""))
        try:
            yield
        finally:
            self.open()

    def _wait_for(self, is_my_turn: Callable[[], bool]) -> None:
        if self._alone is not None and self._holder == threading.get_ident() and not is_my_turn():
            raise UsageProblem(
                "an adapter that PEFT put on the model is in use in another task of this thread",
                hint="end its `with` block before the next `await`, or run it in its own thread",
            )
        self._changed.wait_for(is_my_turn)


class PeftEngine:
    """Runs every adapter that `attach` supports. Keeps none in memory: each block reads its adapter again.

    `put_on` attaches an adapter to `model`. Every load of the bank holds the lock `loading`.
    """

    name = "peft"

    def __init__(self, model: nn.Module, current: Current, put_on: Callable[[AdapterLike], Attached]) -> None:
        self.loading = threading.RLock()
        self._model = model
        self.current = current
        self._put_on = put_on
        self._turnstile = Turnstile()
        self._running: UsingPeft | None = None

    def load(self, ready: ReadyAdapter) -> LoadedAdapter:
        """An adapter without tensors, which marks that it was loaded."""
        return LoadedAdapter(
            label=ready.contents.label,
            engine=self.name,
            updates={},
            size_bytes=0,
            is_additive=False,
            no_rows="PEFT's layers are on the whole model",
        )

    def alone(self) -> AbstractContextManager[None]:
        """Exclusive use of the model for the block.

        Raises:
            UsageProblem: this context, or another task of this thread, uses an adapter on PEFT's layers.
        """
        ensure_outside_use(self.current.get())
        return self._turnstile.alone()

    def try_on(self, found: FoundAdapter) -> None:
        """Attach the adapter and detach it again; raises as `attach`."""
        self._attach(found).detach()

    def use(self, found: FoundAdapter) -> UsingPeft:
        """The adapter for the whole model, for the duration of a `with` block."""
        return UsingPeft(self, found)

    def begin(self, using: UsingPeft, selection: Alone, found: FoundAdapter) -> Attached:
        """Attach the adapter as soon as the model is free."""
        self._turnstile.close(selection)
        try:
            attached = self._attach(found)
        except BaseException:
            self._turnstile.open()
            raise
        self._running, selection.is_on = using, True
        return attached

    def end(self, attached: Attached, selection: Alone) -> None:
        """Detach the adapter, and let others use the model."""
        self._running, selection.is_on = None, False
        try:
            attached.detach()
        finally:
            self._turnstile.open()

    def close(self) -> None:
        """Detach the adapter that is on the model, if any."""
        running = self._running
        if running is not None:
            running.end()

    def guard(self) -> list[RemovableHandle]:
        """Hooks that take every call of the model, and of the encoder that `generate` calls, through the turnstile."""
        current, turnstile = self.current, self._turnstile

        def enter(_module: nn.Module, _args: Args) -> None:
            turnstile.enter(current.get())

        def leave(_module: nn.Module, _args: Args, _output: Output) -> None:
            turnstile.leave()

        handles: list[RemovableHandle] = []
        for door in doors(self._model):
            handles.append(door.register_forward_pre_hook(enter))
            handles.append(door.register_forward_hook(leave, always_call=True))
        return handles

    def _attach(self, found: FoundAdapter) -> Attached:
        with self.loading:  # a hook that a load adds meanwhile would be mistaken for PEFT's
            return self._put_on(found.build or found.folder)


class UsingPeft(Using):
    """As `Using`, but the choice holds only inside a `with` block."""

    def __init__(self, engine: PeftEngine, found: FoundAdapter) -> None:
        self._engine = engine
        self._found = found
        self._attached: Attached | None = None
        self._alone = Alone(found.label)
        super().__init__(engine.current, self._alone, engine.current.get())

    def __enter__(self) -> Self:
        try:
            self._attached = self._engine.begin(self, self._alone, self._found)
        except BaseException as error:
            super().__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.end()
        finally:
            super().__exit__(kind, error, trace)

    def end(self) -> None:
        """Detach the adapter; does nothing the second time."""
        attached, self._attached = self._attached, None
        if attached is not None:
            self._engine.end(attached, self._alone)


def ensure_outside_use(selection: Selection | None) -> None:
    """Raise if this context has an adapter on PEFT's layers: no other choice is possible until it ends.

    Raises:
        UsageProblem: this context has exclusive use of the model.
    """
    if isinstance(selection, Alone) and selection.is_on:
        raise UsageProblem(
            "an adapter that PEFT put on the model is in use here, and affects every choice",
            hint="end its `with` block first",
        )
