"""Compiling without JAX's cache of compiled programs.

A program from the cache lacks the text and memory analysis that the compiler writes, and one for a
CPU cannot be saved again.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextmanager
def uncached() -> Iterator[None]:
    """Programs compiled inside this context neither come from JAX's cache nor go there."""
    before = getattr(jax.config, _CACHE)
    try:
        _use_cache(False)
        yield
    finally:
        _use_cache(before)


_CACHE = "jax_enable_compilation_cache"


def _use_cache(used: bool) -> None:
    jax.config.update(_CACHE, used)
    compilation_cache.reset_cache()  # JAX reads the option only once
