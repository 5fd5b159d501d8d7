"""Orbax checkpoints: training state, and our own model folders."""
