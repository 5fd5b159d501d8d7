"""What a decoder is worth on long texts: perplexity, passkey retrieval, closed-ended tasks."""
