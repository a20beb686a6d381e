"""Loops that numba compiles, where it is installed and works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def compiled(kernel: Any, works: Callable[[Any], bool]) -> Any:
    """A kernel, compiled now or loaded from numba's cache.

    Args:
        kernel: a function that is decorated with `numba.njit`.
        works: calls it, which compiles it, and looks at what comes out.

    Returns:
        The kernel; None where numba is switched off or fails.
    """
    import numba

    if numba.config.DISABLE_JIT:  # pyright: ignore
        return None
    # Where numba can write to no folder, or what lies there is damaged, the error may be any.
    for prepare in (_cached, lambda kernel: numba.njit(nogil=True)(kernel.py_func)):
        try:
            prepared = prepare(kernel)
            if works(prepared):
                return prepared
        except Exception:
            continue
    return None


def _cached(kernel: Any) -> Any:
    kernel.enable_caching()
    return kernel
