"""Tokenizer files and their meaning, independent of the checkpoint format."""
