"""The draws of a balanced epoch by a compiled loop. Needs numba: `balance` imports this, nobody else."""

from __future__ import annotations

from numba import njit


@njit(nogil=True)
def sum_draws(classes, counts, each, extra, phases, ends):
    """What `Balance.ends` says, in one pass: 60 ms for 14 million samples.

    Args:
        classes: integer [N].
        counts: int64 [C], samples of each class.
        each: int64 [C], draws that each of its samples has in any epoch.
        extra: int64 [C], draws beyond these.
        phases: int64 [C], from 0 to below the counts; they are overwritten.
        ends: int64 [N], to be filled.
    """
    total = 0
    for i in range(len(classes)):
        c = classes[i]
        total += each[c]
        phase = phases[c] + extra[c]
        if phase >= counts[c]:
            phase -= counts[c]
            total += 1
        phases[c] = phase
        ends[i] = total
