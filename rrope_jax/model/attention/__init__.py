"""Causal attention: one function, with an implementation for every backend."""
