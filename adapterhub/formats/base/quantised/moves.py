"""Maps the numbers of one tensor to places in others: rows reordered, matrices turned, parts cut or joined.

Every way in which llama.cpp's converter moves numbers is a view: the index of a number of the source, in dimensions
of its own, leads to a place by one stride a dimension. A source in several tensors is several views side by side.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adapterhub.formats.base.quantised.weight import Places

NOWHERE: Final = -1
"""The view of a number that the copy does not have."""


class Unfit(ValueError):
    """The sizes of a tensor are not those that its rule needs."""


class View(NamedTuple):
    """Numbers of the tensor `part`: the one at index i of `dims` is at `base + sum(i * strides)` of it, flattened."""

    part: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    base: int = 0

    @classmethod
    def of(cls, part: str, shape: tuple[int, ...]) -> View:
        """All of a tensor."""
        return cls(part, shape, tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape))))

    def split(self, axis: int, *sizes: int) -> View:
        """Return the dimension `axis` as several; one of `sizes` may be -1.

        Raises:
            Unfit: their product is another size.
        """
        known = math.prod(size for size in sizes if size != -1)
        if known < 1 or self.dims[axis] % known or (-1 not in sizes and known != self.dims[axis]):
            raise Unfit(f"has {self.dims[axis]} where {' x '.join(map(str, sizes))} is expected")
        whole = tuple(self.dims[axis] // known if size == -1 else size for size in sizes)
        strides = tuple(self.strides[axis] * math.prod(whole[n + 1 :]) for n in range(len(whole)))
        dims = self.dims[:axis] + whole + self.dims[axis + 1 :]
        return self._replace(dims=dims, strides=self.strides[:axis] + strides + self.strides[axis + 1 :])

    def order(self, *axes: int) -> View:
        """Return the dimensions in another order; those behind `axes` stay."""
        every = (*axes, *range(len(axes), len(self.dims)))
        return self._replace(dims=tuple(self.dims[n] for n in every), strides=tuple(self.strides[n] for n in every))

    def cut(self, axis: int, start: int, stop: int) -> View:
        """Return the members from `start` to `stop` of a dimension.

        Raises:
            Unfit: there are fewer.
        """
        if not 0 <= start < stop <= self.dims[axis]:
            raise Unfit(f"has {self.dims[axis]} where {stop} is expected")
        dims = (*self.dims[:axis], stop - start, *self.dims[axis + 1 :])
        return self._replace(dims=dims, base=self.base + start * self.strides[axis])

    def member(self, axis: int, number: int) -> View:
        """One member of a dimension, which is no more."""
        cut = self.cut(axis, number, number + 1)
        dims, strides = cut.dims[:axis] + cut.dims[axis + 1 :], cut.strides[:axis] + cut.strides[axis + 1 :]
        return cut._replace(dims=dims, strides=strides)

    def grown(self, axis: int) -> View:
        """Return the same with a dimension of one more, as the last where `axis` is their number."""
        dims, strides = (*self.dims[:axis], 1, *self.dims[axis:]), (*self.strides[:axis], 0, *self.strides[axis:])
        return self._replace(dims=dims, strides=strides)


class Layout(NamedTuple):
    """Position of a tensor of `shape`: views side by side along `axis`, whose dimensions multiply to its size.

    `first`: views of other dimensions, one after the other, of the numbers that come before those. `change`: what the
    copy did to its numbers, a name of `gguf.CHANGES`. `skipped`: numbers at its beginning that the copy left out; those
    behind its end are left out as well.
    """

    shape: tuple[int, ...]
    views: tuple[View, ...]
    axis: int = 0
    change: str = ""
    skipped: int = 0
    first: tuple[View, ...] = ()

    @classmethod
    def joined(cls, shape: tuple[int, ...], axis: int, *views: View) -> Layout:
        """Join views side by side.

        Raises:
            Unfit: their other dimensions differ, or are not those of the shape.
        """
        others = {view.dims[:axis] + view.dims[axis + 1 :] for view in views}
        if len(others) > 1:
            raise Unfit("has another shape than what lay beside it in the source")
        layout = cls(shape, views, axis)
        if math.prod(layout.dims) != math.prod(shape):
            raise Unfit("has another size than in the source")
        return layout

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions of all views together."""
        first, axis = self.views[0].dims, self.axis
        return (*first[:axis], sum(view.dims[axis] for view in self.views), *first[axis + 1 :])

    @property
    def every_view(self) -> tuple[View, ...]:
        """The views in the order of their numbers."""
        return self.first + self.views

    def is_all_of(self, shape: tuple[int, ...]) -> bool:
        """Return whether it is a tensor of that shape, each number at its own place."""
        whole = View.of(self.views[0].part, self.views[0].dims)
        return not self.skipped and self.every_view == (whole,) and math.prod(self.shape) == math.prod(shape)

    def places(self, at: Places) -> tuple[NDArray[np.int64], Places]:
        """For each place of the source: the number of its view, or `NOWHERE`, and the place in the view's tensor."""
        if not self.skipped and not self.first and math.prod(self.dims) == math.prod(self.shape):
            return _led(self.views, self.axis, at)
        rest = at - self.skipped
        which, found = np.full(len(at), NOWHERE), np.zeros(len(at), dtype=np.int64)
        for number, view in enumerate(self.first):
            size = math.prod(view.dims)
            chosen = np.flatnonzero((rest >= 0) & (rest < size))
            which[chosen], found[chosen] = number, _led((view,), 0, rest[chosen])[1]
            rest = np.where(which == number, NOWHERE, rest - size)
        chosen = np.flatnonzero((rest >= 0) & (rest < math.prod(self.dims)))
        inner, found[chosen] = _led(self.views, self.axis, rest[chosen])
        which[chosen] = inner + len(self.first)
        return which, found


def _led(views: tuple[View, ...], axis: int, at: Places) -> tuple[NDArray[np.int64], Places]:
    """For places in views side by side: the number of the view, and the place in its tensor."""
    first = views[0]
    if len(views) == 1 and first.strides == View.of("", first.dims).strides:
        return np.zeros(len(at), dtype=np.int64), at + first.base
    if len(at) and axis < len(first.dims) - 1 and all(view.strides[-1] == 1 for view in views):
        rows = at // first.dims[-1]
        low, high = int(rows.min()), int(rows.max())
        if high - low < len(at) // 2:  # most of what follows is the same for all of a row
            short = tuple(view._replace(dims=view.dims[:-1], strides=view.strides[:-1]) for view in views)
            which, starts = _led(short, axis, np.arange(low, high + 1))
            found = at - rows * first.dims[-1]
            rows -= low
            found += starts[rows]
            return which[rows], found
    bounds = np.cumsum([view.dims[axis] for view in views])
    dims = (*first.dims[:axis], int(bounds[-1]), *first.dims[axis + 1 :])
    index = list(np.unravel_index(at, dims))
    which = np.searchsorted(bounds, index[axis], side="right")
    index[axis] = index[axis] - np.concatenate([[0], bounds])[which]
    strides = np.array([view.strides for view in views])
    found = np.array([view.base for view in views])[which]
    for number, members in enumerate(index):
        found = found + members * strides[which, number]
    return which, found
