"""Reads and writes models and training state."""
