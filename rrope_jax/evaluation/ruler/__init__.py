"""RULER (arXiv 2404.06654): synthetic tasks on long contexts, by task and length.

Prompts, scores and the names of the tasks are those of github NVIDIA/RULER (Apache-2.0), so that
results compare; its wording is quoted, as it defines the benchmark. The code is our own.
"""
