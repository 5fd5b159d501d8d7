"""Evaluation on long texts: perplexity, LongPPL, passkey, closed-ended tasks, RULER."""
