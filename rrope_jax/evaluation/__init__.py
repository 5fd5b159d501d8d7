"""Evaluation of a decoder on long texts: perplexity, passkey, closed-ended tasks, RULER."""
