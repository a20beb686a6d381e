"""Loops that numba compiles, where it is installed and works."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def compiled(module: str, name: str, works: Callable[[Any], bool]) -> Any:
    """A kernel, compiled now or loaded from numba's cache.

    Args:
        module: of this package.
        name: of a function there that is decorated with `numba.njit`.
        works: calls it, which compiles it, and looks at what comes out.

    Returns:
        The kernel; None where numba is missing, switched off or fails.
    """
    try:
        import numba

        kernel = getattr(import_module(f".{module}", __package__), name)
    except ImportError:  # also of a numba that does not fit the installed numpy
        return None
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
