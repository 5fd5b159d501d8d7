"""A training step as one pure function of arrays, built from frozen configs.

Letters: B rows of a batch, T tokens per row, D d_model.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rrope_jax.io.adapters.config import LoraConfig
from rrope_jax.model import Decoder, ModelConfig
from rrope_jax.model.attention.context_parallel import arrange, restore
from rrope_jax.model.decoder import Rotations, abstract_decoder, rotations
from rrope_jax.model.far_layers import far_positions_by_type
from rrope_jax.model.layer_types import LAYER_TYPES
from rrope_jax.model.layers import Rotation
from rrope_jax.rope import (
    PhaseTable,
    RopeSpec,
    cos_sin_from_table,
    phase_table,
    query_temperature,
)
from rrope_jax.rope.learned import learned_cos_sin, unrounded
from rrope_jax.rope.positions import Positions, sample
from rrope_jax.train import lora
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.loss import next_token_losses
from rrope_jax.train.optimizer import LOG_RATIOS, learning_rate, make_optimizer, matrices
from rrope_jax.train.rounding import in_float32, round_like

_ROUNDING = 2  # the keys of a step are those of 0, positions, 1, dropout, and this

Params = dict[str, Any]
"""A decoder's parameters as a pure dict."""

Batch = Mapping[str, jax.Array]
"""Arrays [B, T] as in `data.packing.Rows`: tokens, targets, segment_ids, positions, weights."""

Tables = Mapping[str, PhaseTable]
"""Layer type -> the table of its embedding."""


class State(NamedTuple):
    """Everything that a training step updates.

    Attributes:
      params: parameters in float32, but for matrices in `train.param_dtype`: the decoder's or, with
        LoRA, those of `train.lora` that are trained.
      opt_state: state of the optax optimizer.
      step: int32[], number of steps done.
      sound: bool[], whether all losses and gradients so far were finite. Once it is False, steps
        change nothing, so steps that the host starts before noticing are harmless.
      log_ratios: layer type -> the learned logarithms of `rope.learned`, float32[d/2]; None if
        frequencies are not learned.
      frozen: with LoRA, the decoder's parameters that no step changes; else None.
    """

    params: Params
    opt_state: Any
    step: jax.Array
    sound: jax.Array
    log_ratios: Mapping[str, jax.Array] | None = None
    frozen: Params | None = None

    @property
    def trained(self) -> Params:
        """All that the optimizer updates, as one dict."""
        return self.params | ({} if self.log_ratios is None else {LOG_RATIOS: self.log_ratios})


class Measures(NamedTuple):
    """The numbers of a step, all float32[] except `sound`.

    Attributes:
      loss: mean over the batch's targets before the update, in nats.
      gradient_norm: global norm before clipping.
      learning_rate: the rate of this step.
      targets: number of predicted tokens.
      sound: bool[], as in `State`, after this step.
    """

    loss: jax.Array
    gradient_norm: jax.Array
    learning_rate: jax.Array
    targets: jax.Array
    sound: jax.Array


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions of one training run. All methods are pure and may be jitted.

    Attributes:
      model, rope, train: the configuration.
      segmented: whether rows hold several documents, which must not attend to each other. If not,
        attention masks no segments, and tokens after the document have weight 0.
      lora: which parameters are trained; by default all of them.

    Raises:
      ValueError: two of the configs conflict.
    """

    model: ModelConfig
    rope: RopeSpec
    train: TrainConfig
    segmented: bool = True
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        self.model.check_trainable()
        jax.eval_shape(  # raises if the sampling does not fit the length
            lambda: sample(self.train.positions, jax.random.key(0), 1, self.train.length)
        )
        self._graph()  # raises if the embedding does not fit the model
        lora.check(self.lora, self.model)
        if self.train.frequency_rate is None:
            return
        if not self._learning_layers:
            raise ValueError(
                f"train.frequency_rate={self.train.frequency_rate} has no effect: no layer of the "
                "model rotates; leave it None"
            )
        for name in self._learning_layers:
            unrounded(self.rope.of(name))  # raises if its frequencies cannot be learned

    def reach(self, length: int) -> int:
        """The length in rows of `length` tokens, for what depends on the current length."""
        return max(self.train.reach, length)

    def far_layers(self, length: int) -> Collection[str]:
        """The layer types in which far pairs have other positions, in rows of `length` tokens."""
        return far_positions_by_type(self.model, self.rope, self.reach(length)).keys()

    def init(self, key: jax.Array) -> State:
        """The state of a new model with random parameters."""
        decoder = Decoder(self.model, self.rope, rngs=nnx.Rngs(params=key))
        params = nnx.to_pure_dict(nnx.state(decoder, nnx.Param))
        return self.state_from_params(params, jax.random.fold_in(key, 1))

    def state_from_params(self, params: Params, key: jax.Array | None = None) -> State:
        """The initial state of a model.

        Args:
          params: the decoder's parameters.
          key: a PRNG key for new adapters; may be None without LoRA.
        """
        return self.state_from_parts(*lora.split(self.lora, params), key)

    def state_from_parts(
        self,
        trained: Params,
        frozen: Params | None,
        key: jax.Array | None,
        factors: Params | None = None,
    ) -> State:
        """`state_from_params` for the two results of `lora.split`, and factors if not new ones."""
        if frozen is not None:
            if factors is None:
                assert key is not None
                factors = lora.new_factors(self.lora, self.model, key)
            trained = lora.joined(trained, factors)
        trained = jax.tree.map(
            lambda x, is_matrix: x.astype(self.train.param_dtype) if is_matrix else x,
            trained,
            matrices(trained),
        )
        log_ratios = None
        if self._learning_layers:
            log_ratios = {
                name: jnp.zeros(self.rope.of(name).rotary_dim // 2)
                for name in self._learning_layers
            }
        zero, sound = jnp.zeros((), jnp.int32), jnp.ones((), bool)
        state = State(trained, (), zero, sound, log_ratios, frozen)
        opt_state = make_optimizer(self.train).init(in_float32(state.trained))
        return state._replace(opt_state=opt_state)

    def step(self, state: State, batch: Batch, key: jax.Array) -> tuple[State, Measures]:
        """One optimizer step.

        Args:
          state: the current state; donate it, as in `jax.jit(program.step, donate_argnums=0)`.
          batch: arrays int32[B, T] or float32[B, T].
          key: the run's key; random draws depend only on it and on the step's number.

        Returns:
          The new state and the numbers of the step.
        """
        _check_shapes(batch)
        config = self.train
        step_key = jax.random.fold_in(key, state.step)
        position_key, dropout_key = jax.random.split(step_key)
        param_key, moment_key = jax.random.split(jax.random.fold_in(step_key, _ROUNDING))
        targets = jnp.sum(batch["weights"])
        total, gradients = self._gradients(
            state.trained, state.frozen, batch, position_key, dropout_key
        )
        # divide by the targets of the whole batch, so that all count the same in any microbatch
        loss, gradients = jax.tree.map(lambda x: x / jnp.maximum(targets, 1.0), (total, gradients))
        gradient_norm = optax.tree.norm(gradients)
        trained = in_float32(state.trained)
        updates, opt_state = make_optimizer(config).update(
            gradients, state.opt_state, trained, rounding_key=moment_key
        )
        sound = state.sound & jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
        params: Params = optax.apply_updates(trained, updates)
        params = round_like(param_key, params, state.trained)
        log_ratios = params.pop(LOG_RATIOS, None)
        proposed = State(params, opt_state, state.step + 1, sound, log_ratios)
        kept = state._replace(frozen=None)
        chosen = jax.tree.map(lambda new, old: jnp.where(sound, new, old), proposed, kept)
        rate = learning_rate(config, state.step)
        # set separately: when it turns False, the selection above keeps the old True
        chosen = chosen._replace(sound=sound, frozen=state.frozen)
        return chosen, Measures(loss, gradient_norm, rate, targets, sound)

    def heldout(
        self, params: Params, batch: Batch, tables: Tables | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Summed loss and number of targets of a batch, at its own positions, without dropout.

        Args:
          params: the decoder's parameters, from `decoder_params`.
          batch: as for `step`.
          tables: from `tables`, for learned frequencies; None for those of the spec.
        """
        _check_shapes(batch)
        positions = Positions(batch["positions"])
        losses_BT = self._losses(params, batch, positions, None, tables)
        return jnp.sum(losses_BT * batch["weights"]), jnp.sum(batch["weights"])

    def decoder_params(self, state: State) -> Params:
        """The decoder's parameters of a state; with LoRA some are `LowRankUpdated`."""
        return lora.decoder_params(self.lora, state.params, state.frozen)

    def tables(self, rope: RopeSpec, length: int) -> Tables:
        """The tables of an embedding for `heldout`, as NumPy arrays.

        Args:
          rope: what `rope.learned.learned_spec` makes of the program's embedding.
          length: tokens per row.
        """
        seq_len = self.reach(length)
        return {name: phase_table(rope.of(name), seq_len) for name in self._learning_layers}

    @property
    def _learning_layers(self) -> tuple[str, ...]:
        """The layer types whose frequencies are learned."""
        if self.train.frequency_rate is None:
            return ()
        types = dict.fromkeys(self.model.layer_types)
        return tuple(name for name in types if LAYER_TYPES[name].rotates)

    def _gradients(
        self,
        params: Params,
        frozen: Params | None,
        batch: Batch,
        position_key: jax.Array,
        dropout_key: jax.Array,
    ) -> tuple[jax.Array, Params]:
        """The summed loss of a batch and its gradients."""
        parts = self.train.accumulation
        positions = self._positions(batch["positions"], position_key)

        def total(params: Params, batch: Batch, positions: Positions, key: jax.Array) -> jax.Array:
            dropout = key if self.model.dropout else None
            adapter_key = jax.random.fold_in(key, 1) if self.lora.dropout else None
            whole = lora.decoder_params(self.lora, params, frozen, adapter_key)
            losses_BT = self._losses(whole, batch, positions, dropout)
            return jnp.sum(losses_BT * batch["weights"])

        if parts == 1:
            return jax.value_and_grad(total)(params, dict(batch), positions, dropout_key)

        def split(x_BT: jax.Array) -> jax.Array:
            """Takes a microbatch's rows from all along the batch: each device has its share."""
            return jnp.moveaxis(x_BT.reshape(-1, parts, *x_BT.shape[1:]), 1, 0)

        def add(sums: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(total)(params, *part)), None

        # bfloat16 would lose what a microbatch adds to the sum of many
        zeros = (jnp.zeros((), jnp.float32), in_float32(jax.tree.map(jnp.zeros_like, params)))
        microbatches = jax.tree.map(split, (dict(batch), positions))
        keys = jax.random.split(dropout_key, parts)
        sums, _ = jax.lax.scan(add, zeros, (*microbatches, keys))
        return sums

    def _losses(
        self,
        trained: Params,
        batch: Batch,
        positions: Positions,
        dropout_key: jax.Array | None,
        tables: Tables | None = None,
    ) -> jax.Array:
        """The loss of every target, even of weight 0: float32[B, T], in nats."""
        params = {name: value for name, value in trained.items() if name != LOG_RATIOS}
        decoder = nnx.merge(self._graph(), params)
        length = batch["tokens"].shape[1]
        batch, positions = jax.tree.map(arrange, (dict(batch), positions))
        hidden_BTD = decoder.hidden(
            batch["tokens"],
            segment_ids_BT=batch["segment_ids"] if self.segmented else None,
            rotation=self._rotations(positions, length, trained.get(LOG_RATIOS), tables),
            dropout_key=dropout_key,
            arranged=True,
        )
        return restore(
            next_token_losses(decoder, hidden_BTD, batch["targets"], chunk=self.train.loss_chunk)
        )

    def _rotations(
        self,
        positions: Positions,
        length: int,
        log_ratios: Mapping[str, jax.Array] | None,
        tables: Tables | None,
    ) -> Rotations:
        """The rotation of each layer type: as learned so far, in tables, or of the spec."""
        whole, fraction = positions
        seq_len = self.reach(length)
        if log_ratios is None and tables is None:
            return rotations(self.model, self.rope, whole, fraction=fraction, seq_len=seq_len)

        def of_layers(name: str) -> Rotation:
            spec = self.rope.of(name)
            if tables is not None:
                cos, sin = cos_sin_from_table(tables[name], whole, fraction=fraction)
            else:
                assert log_ratios is not None
                start = phase_table(unrounded(spec), seq_len)
                cos, sin = learned_cos_sin(start, log_ratios[name], whole, fraction=fraction)
            return Rotation(cos, sin, query_temperature(spec, whole))

        return {
            name: of_layers(name) if LAYER_TYPES[name].rotates else None
            for name in self.model.layer_types
        }

    def _positions(self, index_BT: jax.Array, key: jax.Array) -> Positions:
        """The rotary positions of tokens, from their indices within documents."""
        if self.train.positions.sampler == "contiguous":
            return Positions(index_BT)
        whole_BT, fraction_BT = sample(self.train.positions, key, *index_BT.shape)
        if fraction_BT is not None:
            fraction_BT = jnp.take_along_axis(fraction_BT, index_BT, axis=-1)
        return Positions(jnp.take_along_axis(whole_BT, index_BT, axis=-1), fraction_BT)

    def _graph(self) -> Any:
        return nnx.graphdef(abstract_decoder(self.model, self.rope))


def _check_shapes(batch: Batch) -> None:
    """Checks that all arrays are [B, T]: [T] or [B, 1] would broadcast to a wrong loss.

    The check runs during tracing, so it costs nothing later.
    """
    chex.assert_rank(batch["tokens"], 2)
    chex.assert_equal_shape(list(batch.values()))
