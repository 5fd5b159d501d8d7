"""Conversion between `RopeSpec` and the RoPE keys of a Hugging Face config.json."""
