"""llama.cpp as a server in this process, through the package xllamacpp."""

import json
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def serve(file: Path, context: int) -> Any:
    """A server for one row of so many tokens, with a cache of float32."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx = context
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.verbosity = 0
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(parameters)


def choices(server: Any, tokens: Sequence[int], positions: Iterable[int]) -> list[int]:
    """The most likely token after the tokens up to each position."""
    found = []
    for position in positions:
        answer = server.handle_completions(
            {
                "prompt": tokens[: position + 1],
                "n_predict": 1,
                "n_probs": 1,
                "temperature": 0.0,
                "cache_prompt": True,
            }
        )
        best = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]
        found.append(int(best["id"]))
    return found


def tokenize(server: Any, text: str) -> list[int]:
    """The ids of a text, without those that are added around it."""
    request = urllib.request.Request(
        f"{server.listening_address}/tokenize",
        json.dumps({"content": text, "parse_special": True}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        ids: list[int] = json.loads(answer.read())["tokens"]
    return ids
