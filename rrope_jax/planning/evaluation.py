"""The programs of `rrope evaluate` as workloads: perplexity, and reading and continuing prompts.

They are those of a single device. A unit of the evaluation is one batch of rows: its perplexity
takes one call, or one for each chunk of tokens; its prompts one for each chunk, and one call in
which all tokens of the answers are written, one after the other.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rrope_jax.evaluation.generation import Generator
from rrope_jax.evaluation.perplexity import PerplexitySetting, losses_of
from rrope_jax.model import Decoder, ModelConfig, flops
from rrope_jax.model.attention.call import CallShape
from rrope_jax.model.attention.choice import choose
from rrope_jax.model.cache import cache_bytes
from rrope_jax.model.decoder import abstract_decoder, parameter_bytes
from rrope_jax.model.far_layers import far_positions_by_type
from rrope_jax.planning.workload import Demands, StepShape, attention_text, check_compiles_here
from rrope_jax.rope import RopeSpec
from rrope_jax.sharding import LayoutError, MeshConfig, make_mesh


@dataclasses.dataclass(frozen=True)
class PromptShape:
    """The sizes of prompts and their answers.

    Attributes:
      context: tokens of the longest prompt with its answer, for which the cache is made.
      chunk: tokens of a prompt that go through the model at a time.
      written: tokens of an answer.
      section: the group of `config.eval` that they are of.
    """

    context: int
    chunk: int
    written: int
    section: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True)
class ModelEvaluation:
    """What `rrope evaluate` computes; a `Job`.

    Attributes:
      model, rope: the decoder.
      perplexity: the setting of perplexity; None if there is none.
      prompts: the longest prompts of passkeys, closed-ended tasks and RULER; None for none.
      batch_size: rows or prompts at once.
    """

    model: ModelConfig
    rope: RopeSpec
    perplexity: PerplexitySetting | None
    prompts: PromptShape | None
    batch_size: int = 1

    @property
    def one_step(self) -> None:
        """None: there is only one mesh, and several programs."""

    def check(self, devices: Sequence[jax.Device]) -> None:
        """Raises LayoutError if there is more than one device, or it cannot be compiled here."""
        if len(devices) > 1:
            raise LayoutError(
                "eval",
                f"an evaluation is planned for one device, and the topology has {len(devices)}; "
                "give one such as h100:1x1x1 or v5p:1x1x1",
            )
        for program in self.workloads(devices):
            for implementation in program.attention(program.make_mesh(devices)).values():
                check_compiles_here(implementation)

    def workloads(self, devices: Sequence[jax.Device]) -> tuple["EvaluationProgram", ...]:
        """Its programs."""
        del devices
        phases = ["perplexity"] if self.perplexity is not None else []
        if self.prompts is not None:
            phases += ["prompt", "answer"]
        return tuple(EvaluationProgram(self, phase) for phase in phases)

    @functools.cached_property
    def decoder(self) -> Decoder:
        """The decoder, without memory."""
        return abstract_decoder(self.model, self.rope)


@dataclasses.dataclass(frozen=True)
class EvaluationProgram:
    """One program of an evaluation; a `Workload`.

    Attributes:
      job: the evaluation that it is part of.
      phase: `perplexity`, `prompt` (a chunk of it) or `answer` (all of its tokens).
    """

    job: ModelEvaluation
    phase: str

    @property
    def name(self) -> str:
        """A short description of the job."""
        rows = f"{self.job.batch_size} rows" if self.job.batch_size > 1 else "a row"
        length = max(program._length for program in self.job.workloads(()))
        return f"evaluation of {rows} of {length:,} tokens, {self.job.model.weight_dtype} weights"

    def identity(self) -> Mapping[str, Any]:
        """All fields."""
        return {**dataclasses.asdict(self.job), "phase": self.phase}

    def make_mesh(self, devices: Sequence[jax.Device]) -> Mesh:
        """The mesh of one device."""
        return make_mesh(MeshConfig(), devices)

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """The program of `rrope evaluate`."""
        job = self.job
        whole = NamedSharding(mesh, PartitionSpec())
        state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
            nnx.split(job.decoder)[1],
        )
        with jax.set_mesh(mesh):
            if self.phase == "perplexity":
                assert job.perplexity is not None
                return losses_of(job.decoder, job.perplexity).lower(
                    state, job.batch_size, self._length
                )
            assert job.prompts is not None
            generator = Generator(job.decoder, chunk=job.prompts.chunk)
            sizes = job.batch_size, job.prompts.context
            if self.phase == "prompt":
                return generator.lower_reading(state, *sizes)
            return generator.lower_writing(state, *sizes, max_tokens=job.prompts.written)

    def attention(self, mesh: Mesh) -> dict[str, str]:
        """The attention implementation of each layer type."""
        model, T, S = self.job.model, self._tokens_at_a_time, self._length
        far = far_positions_by_type(model, self.job.rope, S)
        names = {}
        for layer_type in model.layer_types:
            window = model.window_of(layer_type)
            shape = CallShape(
                B=self.job.batch_size,
                T=T,
                S=S if window is None or not self._cached else min(window, S) + T,
                N=model.num_heads,
                K=model.kv_heads,
                H=model.head_size,
                dtype=jnp.dtype(model.compute_dtype),
                continued=self._cached,
                window=window,
                far=layer_type in far,
            )
            with jax.set_mesh(mesh):
                names[layer_type] = choose(shape, model.attention).name
        return names

    def demands(self, mesh: Mesh) -> Demands:
        """The demands of a call on the device, a mean over the calls of a row."""
        job, model = self.job, self.job.model
        attention = self.attention(mesh)
        work, calls = self._work(attention), self._calls
        state = {"parameters": parameter_bytes(model)}
        if self._cached:
            state["cache"] = cache_bytes(model, job.batch_size, self._length, job.rope)
        tokens = math.ceil(work.tokens / calls)
        return Demands(
            model_flops=work.model_flops / calls,
            executed_flops=work.executed_flops(model) / calls,
            dtype=model.compute_dtype,
            shape=StepShape(
                model=model,
                rows=1,
                length=tokens,
                accumulation=1,
                parameters=sum(leaf.size for leaf in jax.tree.leaves(nnx.state(job.decoder))),
                attention=attention,
                chunked_logits=False,
                mesh_shape=mesh.shape,
            ),
            repeats=1,
            training=False,
            state=state,
            steps=1,
            tokens=tokens,
            calls=calls,
            details={
                "phase": self.phase,
                "tokens at a time": job.batch_size * self._tokens_at_a_time,
                "weights": model.weight_dtype,
                "attention": attention_text(attention),
            },
            traffic={
                "weights": work.weight_reads / calls * state["parameters"],
                "attention": work.attention_bytes / calls,
                "logits": 2 * 4 * work.predictions / calls * model.vocab_size,
            },
        )

    @property
    def _length(self) -> int:
        """Tokens of a row."""
        if self.phase == "perplexity":
            assert self.job.perplexity is not None
            return max(self.job.perplexity.contexts)
        assert self.job.prompts is not None
        return self.job.prompts.context

    @property
    def _tokens_at_a_time(self) -> int:
        """Tokens of a row that go through the model at a time."""
        if self.phase == "perplexity":
            assert self.job.perplexity is not None
            return min(self.job.perplexity.chunk or self._length, self._length)
        assert self.job.prompts is not None
        return 1 if self.phase == "answer" else min(self.job.prompts.chunk, self._length)

    @property
    def _cached(self) -> bool:
        return self.phase != "perplexity" or self._tokens_at_a_time < self._length

    @property
    def _calls(self) -> int:
        return 1 if self.phase == "answer" else math.ceil(self._length / self._tokens_at_a_time)

    def _work(self, attention: Mapping[str, str]) -> "_Work":
        """The work of all calls for the rows of a batch."""
        job, model, T = self.job, self.job.model, self._length
        if self.phase == "answer":
            assert job.prompts is not None
            written = job.prompts.written
            return _Work(
                tokens=job.batch_size * written,
                pairs=job.batch_size * written * flops.over_layers(model, lambda w: min(T, w or T)),
                predictions=job.batch_size * written,
                model_flops=job.batch_size * flops.causal_flops(model, T - written, T, logits=True),
                weight_reads=written,
                attention_bytes=written * cache_bytes(model, job.batch_size, T, job.rope),
            )
        predicts = self.phase == "perplexity"
        of_layers = {name: self._pairs(name, attention[name]) for name in model.layer_types}
        return _Work(
            tokens=job.batch_size * T,
            pairs=job.batch_size * flops.over_layer_types(model, lambda name: of_layers[name][0]),
            predictions=job.batch_size * T if predicts else 0,
            model_flops=job.batch_size * flops.causal_flops(model, 0, T, logits=predicts),
            weight_reads=self._calls,
            attention_bytes=job.batch_size
            * model.num_heads
            * flops.over_layer_types(model, lambda name: of_layers[name][1]),
        )

    def _pairs(self, layer_type: str, implementation: str) -> tuple[int, float]:
        """A row's query-key pairs in a layer per head, and the bytes moved for them."""
        model, cost = self.job.model, flops.ATTENTION_COSTS[implementation]
        window = model.window_of(layer_type)
        pairs, block = flops.computed_pairs(self._length, cost, window), cost.block_of(window)
        # as in roofline.traffic: blocks read keys and values, other logits are written and read
        width = jnp.dtype(model.compute_dtype).itemsize
        return pairs, pairs * (4 * 4 if block is None else 2 * model.head_size * width / block)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Work:
    """The work of a batch of rows, over all calls and layers.

    Attributes:
      tokens: tokens that pass through the blocks.
      pairs: query-key pairs that attention computes per head.
      predictions: tokens whose logits are computed.
      model_flops: see `model.flops`.
      weight_reads: how often all weights are read.
      attention_bytes: bytes of keys, values and attention weights that are moved.
    """

    tokens: int
    pairs: int
    predictions: int
    model_flops: int
    weight_reads: int
    attention_bytes: float

    def executed_flops(self, model: ModelConfig) -> int:
        return flops.forward_flops(
            model, tokens=self.tokens, pairs=self.pairs, predictions=self.predictions
        )
