"""Evaluation of a decoder on long texts: perplexity, passkey retrieval, closed-ended tasks."""
