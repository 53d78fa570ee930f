"""Histograms of gradients' and updates' entries, by powers of two, counted on the device.

The buckets are the same for every layer, step and process, so that counts add up, and no range has
to be known before: an entry's bucket is the exponent of its float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

LEAST, MOST = -40, 8  # exponents: sizes below 2^LEAST are in the middle bucket, the last is open
_SIDE = MOST - LEAST + 1
BUCKETS = 2 * _SIDE + 1
"""Buckets: of negative entries, of those near 0, and of positive ones."""
LIMITS = (
    *(-(2.0**exponent) for exponent in range(MOST, LEAST - 1, -1)),
    *(2.0**exponent for exponent in range(LEAST, MOST + 1)),
    torch.finfo(torch.float32).max,
)
"""Upper limits of the buckets; the lowest begins at the least number."""
_MIDDLES = (
    *(-1.5 * 2.0**exponent for exponent in range(MOST, LEAST - 1, -1)),
    0.0,
    *(1.5 * 2.0**exponent for exponent in range(LEAST, MOST + 1)),
)
_COLUMNS = BUCKETS + 1  # the last one is of entries that are not finite


class EntryHistogram(NamedTuple):
    """How many entries are between one limit and the next, in the mean of the steps read.

    Steps in which the layer had no gradient, because it was frozen or not there yet, do not count.

    Entries that are not finite are left out. `limits` are upper limits, `counts` as many; the
    first bucket begins at the least float32.
    """

    limits: tuple[float, ...]
    counts: tuple[float, ...]

    def raw(self) -> dict[str, Any]:
        """Give what `SummaryWriter.add_histogram_raw` takes: the occupied buckets.

        Smallest and largest entry, sum and sum of squares are those of the buckets' middles.
        """
        used = [at for at, count in enumerate(self.counts) if count]
        first, last = used[0], used[-1] + 1
        limits, counts = self.limits[first:last], self.counts[first:last]
        middles = [_MIDDLES[at] for at in range(first, last)]
        return {
            "min": middles[0],
            "max": middles[-1],
            "num": sum(counts),
            "sum": sum(count * at for count, at in zip(counts, middles)),
            "sum_squares": sum(count * at * at for count, at in zip(counts, middles)),
            "bucket_limits": list(limits),
            "bucket_counts": list(counts),
        }


def places_of(sizes: Sequence[int], rows: Sequence[int], device: torch.device) -> Tensor:
    """Give where counts of entries begin, for entries in a row: parts of sizes, each of a row."""
    parts = [torch.full((n,), row * _COLUMNS, device=device) for n, row in zip(sizes, rows)]
    return torch.cat(parts)


@torch.no_grad()
def count_entries(entries: Tensor, places: Tensor, rows: int) -> Tensor:
    """Count entries, (n,), by row and bucket: (rows, BUCKETS) float64.

    Args:
        entries: of any floating dtype.
        places: of each, what `places_of` gave.
        rows: how many there are.
    """
    bits = entries.float().contiguous().view(torch.int32)
    exponent = (bits >> 23 & 0xFF).sub_(127)
    finite = exponent <= 127
    size = exponent.sub_(LEAST - 1).clamp_(0, _SIDE)  # 0 in the middle
    bucket = torch.where(bits < 0, -size, size).add_(_SIDE)
    index = places + torch.where(finite, bucket, BUCKETS)
    counts = torch.zeros(rows * _COLUMNS, dtype=torch.int64, device=entries.device)
    one = torch.ones((), dtype=torch.int64, device=entries.device)
    counts.scatter_add_(0, index, one.expand(len(index)))  # whole numbers: exact in any order
    return counts.view(rows, _COLUMNS)[:, :BUCKETS].double()


def histogram_of(counts: Sequence[float]) -> EntryHistogram:
    """Give the histogram of one row's counts."""
    return EntryHistogram(LIMITS, tuple(counts))
