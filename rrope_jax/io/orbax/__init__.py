"""Orbax checkpoints: training state, and models of our own."""
