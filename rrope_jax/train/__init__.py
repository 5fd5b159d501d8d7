"""Training a decoder on text."""
