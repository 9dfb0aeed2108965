"""How the metric kernels are compiled: one thread, without the GIL, kept on disk where possible."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

# Kept beside the kernels or in NUMBA_CACHE_DIR. On a read-only install without that variable every
# process compiles anew.
CACHE = bool(numba.config.CACHE_DIR) or os.access(Path(__file__).parent, os.W_OK)


def compiled(function: Kernel) -> Kernel:
    """Compile a kernel of numpy arrays and numbers."""
    # No NaN comes in (checked before), and sums keep their order, so that a result does not depend
    # on who computes it. Infinity stands for "no path", so it must stay.
    compile_it = numba.njit(cache=CACHE, nogil=True, fastmath={"nnan", "nsz", "contract"})
    return cast(Kernel, compile_it(function))
