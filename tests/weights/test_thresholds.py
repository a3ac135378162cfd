"""The threshold of the largest numbers is exact, however it is found."""

from __future__ import annotations

import pytest
import torch

from adapterhub.weights.merge.spaces import delta
from adapterhub.weights.merge.spaces.prune import sizes_near, threshold_of


@pytest.mark.parametrize("part", [0.001, 0.2, 0.5, 0.97])
@pytest.mark.parametrize("decimals", [7, 2])
def test_threshold_near_two_sizes_is_that_of_the_ordered_numbers(part: float, decimals: int) -> None:
    values = torch.randn(300_000, generator=torch.Generator().manual_seed(1)).round(decimals=decimals)  # 2: many ties
    count = int(part * len(values))
    ordered = values.abs().sort(descending=True).values
    expected = float(ordered[count - 1]), int((ordered >= ordered[count - 1]).sum()) - count

    for near in (sizes_near(values[::5].clone(), part), (100.0, 200.0), (0.0, 0.0), None):
        assert threshold_of(lambda: values.split(70_000), count, near) == expected


def test_large_matrix_keeps_exactly_its_largest_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "_LARGE", 1 << 16)  # as a matrix of 4 million numbers
    drawn = torch.Generator().manual_seed(2)
    update = delta.DeltaUpdate(
        a=torch.randn(4, 700, generator=drawn), b=torch.randn(900, 4, generator=drawn), generator=drawn
    )
    whole = torch.cat([rows for _, rows in update.strips()])
    mask = delta.largest(update, 200_000)

    kept = torch.cat([rows for at, rows in update.strips() if mask(rows, at) is None])

    assert int((kept != 0).sum()) == 200_000
    assert float(kept[kept != 0].abs().min()) >= float(whole[kept == 0].abs().max())
    assert torch.equal(kept[kept != 0], whole[kept != 0])
