"""Compiling anew, whatever JAX's cache of compiled programs has.

What is read of a compilation, its text and its memory, is what compilers write, not what a cache
keeps; and a program of a CPU that comes from the cache cannot be saved again.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextmanager
def uncached() -> Iterator[None]:
    """Nothing that is compiled meanwhile comes from JAX's cache or goes there."""
    before = getattr(jax.config, _CACHE)
    try:
        _use_cache(False)
        yield
    finally:
        _use_cache(before)


_CACHE = "jax_enable_compilation_cache"


def _use_cache(used: bool) -> None:
    jax.config.update(_CACHE, used)
    compilation_cache.reset_cache()  # JAX asks once, and keeps the answer
