"""`rrope generate`: continues a prompt with a checkpoint of any format."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Annotated

from absl import flags

from rrope_jax.cli import backend
from rrope_jax.cli.command_line import parse
from rrope_jax.cli.errors import UsageError
from rrope_jax.cli.settings import Fields, SomeOf, from_config
from rrope_jax.evaluation.generation import Generator, Sampling
from rrope_jax.jobs.model_mesh import mesh_config
from rrope_jax.jobs.pretrained_model import (
    PretrainedModel,
    advising_on_memory,
    define_checkpoint,
    load_model,
    settable,
)
from rrope_jax.jobs.rope_groups import RopeFields
from rrope_jax.model import ModelConfig
from rrope_jax.model.cache import cache_bytes
from rrope_jax.run import distributed
from rrope_jax.run.distributed import Peers
from rrope_jax.sharding import MeshConfig

SUMMARY = (
    "Prints how a checkpoint continues a prompt, greedily or sampled. --config.rope.scaling=yarn "
    "--config.rope.factor=4 and the like change its rotary embedding, without training; "
    "--config.model.compute_dtype=bfloat16 its arithmetic, --config.model.weight_dtype=int8 what "
    "its weights take in memory, --config.mesh.tensor=4 over how many devices it lies."
)

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class GenerateSetting:
    """The overrides of `rrope generate`: fields of RopeSpec, ModelConfig and MeshConfig."""

    rope: RopeFields
    model: Annotated[Fields, SomeOf(ModelConfig)]
    mesh: Annotated[Fields, SomeOf(MeshConfig)]


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    overrides = settable(GenerateSetting)
    overrides.model.update({"compute_dtype": "float32", "attention": "auto"})
    values = parse("generate", SUMMARY, argv, _define, config=overrides)
    if values.max_tokens < 1:
        raise UsageError(f"--max_tokens={values.max_tokens}: it has to be at least 1")
    if values.chunk < 1:
        raise UsageError(f"--chunk={values.chunk}: it has to be at least 1")
    if not values.prompt:
        raise UsageError("--prompt is empty; give the text to continue")
    try:
        values.prompt.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"--prompt is not UTF-8 text: {error}") from error
    if not 0 <= values.seed < 2**32:
        raise UsageError(f"--seed={values.seed} must be from 0 to 2^32 - 1")
    try:
        sampling = Sampling(temperature=values.temperature, top_k=values.top_k, top_p=values.top_p)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    setting = from_config(GenerateSetting, values.config, "config")
    return distributed.run(
        "generate", lambda peers: _generate(setting, values, sampling, peers), preemption=False
    )


def _generate(
    setting: GenerateSetting, values: flags.FlagValues, sampling: Sampling, peers: Peers
) -> int:
    """Generates in every process; process 0 prints."""
    same = ("prompt", "max_tokens", "temperature", "top_k", "top_p", "seed", "bos")
    peers.check_same(
        {"config": dataclasses.asdict(setting)} | {f"--{name}": values[name].value for name in same}
    )
    model = load_model(
        values.checkpoint,
        rope=setting.rope,
        model=setting.model,
        tokenizer=values.tokenizer,
        adapter=values.adapter,
        mesh=mesh_config(setting.mesh, peers),
    )
    backend.configure_logging(logging.INFO if peers.first else logging.ERROR)
    with advising_on_memory(model.decoder.config):
        text = _continue(model, values, sampling)
    print(text)
    return 0


def _continue(model: PretrainedModel, values: flags.FlagValues, sampling: Sampling) -> str:
    prompt = model.prompt(values.prompt, bos=values.bos)
    if not prompt:
        raise UsageError(f"--prompt={values.prompt!r} has no tokens; give another text, or --bos")
    capacity = len(prompt) + values.max_tokens
    squeezed = model.description.rope.far_positions != "none"  # then the context is no limit
    if capacity > model.description.context and not squeezed:
        _LOG.warning(
            "prompt and continuation take %d tokens, the model is meant for %d",
            capacity,
            model.description.context,
        )
    generator = Generator(model.decoder, chunk=values.chunk)
    began = time.perf_counter()
    cache = generator.read([prompt], capacity=capacity)
    read = time.perf_counter()
    (written,) = generator.generate(
        prompt[-1:],
        cache,
        max_tokens=values.max_tokens,
        sampling=sampling,
        stop_ids=model.stop_ids,
        seed=values.seed,
        in_place=True,
    )
    done = time.perf_counter()
    _LOG.info(
        "read %d tokens in %.1f s, wrote %d in %.1f s, compilation included; %.1f MiB of cache",
        len(prompt),
        read - began,
        len(written),
        done - read,
        cache_bytes(model.decoder.config, 1, capacity, model.decoder.rope) / 2**20,
    )
    return model.tokenizer.decode_after(prompt, written)


def _define(values: flags.FlagValues) -> None:
    define_checkpoint(values)
    flags.DEFINE_string("prompt", None, "the text to continue", flag_values=values, required=True)
    flags.DEFINE_integer("max_tokens", 64, "how many tokens to write at most", flag_values=values)
    flags.DEFINE_float(
        "temperature", 0.0, "divides the logits; 0 takes the likeliest token", flag_values=values
    )
    flags.DEFINE_integer(
        "top_k", 0, "draw among so many of the likeliest tokens, 0 for all", flag_values=values
    )
    flags.DEFINE_float(
        "top_p", 1.0, "draw among the likeliest tokens of this probability", flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "of the draws", flag_values=values)
    flags.DEFINE_integer(
        "chunk",
        2048,
        "tokens of the prompt that go through the model at a time",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "bos",
        None,
        "begin with the tokenizer's first token; by default where its files say so",
        flag_values=values,
    )
    flags.DEFINE_string(
        "tokenizer",
        None,
        "tokenizer.json, a folder with one, or bytes, for a checkpoint that comes without",
        flag_values=values,
    )
