"""Estimates what a training step needs on absent chips: memory, FLOPs, traffic, time."""
