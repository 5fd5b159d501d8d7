"""The files of a tokenizer, and what they mean, whatever checkpoint they come with."""
