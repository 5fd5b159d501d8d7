"""Compiles without JAX's cache of compiled programs.

A program from the cache lacks the text and memory analysis that the compiler writes, and a CPU
program from the cache cannot be serialized again.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextmanager
def uncached() -> Iterator[None]:
    """A context in which JAX neither reads nor writes its cache of compiled programs."""
    before = getattr(jax.config, _CACHE)
    try:
        _use_cache(False)
        yield
    finally:
        _use_cache(before)


_CACHE = "jax_enable_compilation_cache"


def _use_cache(used: bool) -> None:
    jax.config.update(_CACHE, used)
    compilation_cache.reset_cache()  # otherwise JAX reads the option only once
