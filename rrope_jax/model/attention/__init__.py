"""Causal attention: one function, and an implementation for every backend."""
