"""Reads and writes Hugging Face folders: config.json, safetensors and tokenizer files."""
