"""Rotary position embeddings with integer wavelengths (Resonance RoPE) in JAX.

Importing this package loads nothing heavy; take what you need from its parts, for example
``from rrope_jax import rope``.
"""

__version__ = "0.1.0"
