"""The mean loss on held-out text during training."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from rrope_jax.data.packing import Row, Rows
from rrope_jax.model.decoder import attention_names
from rrope_jax.sharding import parts, refused_for
from rrope_jax.train.loop import EvaluationStopped
from rrope_jax.train.sharded import Placement, check_length
from rrope_jax.train.step import Params, Program, Tables

EVAL_LOSS = "eval_loss"
"""The metric of all held-out text; that of one of several texts has the text's name after it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldoutConfig:
    """When the held-out loss is measured during training, and on which rows.

    Attributes:
      every_steps: steps between measurements; None for no measurements.
      length: tokens per row; None for the training length.
      batch_size: rows per forward pass.
      max_rows: number of rows of each text to use, spread evenly over it; None for all.

    Raises:
      ValueError: a field is not positive.
    """

    every_steps: int | None = None
    length: int | None = None
    batch_size: int = 1
    max_rows: int | None = None

    def __post_init__(self) -> None:
        for name in ("every_steps", "length", "batch_size", "max_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")


def check(program: Program, mesh: Mesh, config: HeldoutConfig) -> tuple[int, int]:
    """The rows and tokens per row of a batch; rows are rounded up to what the mesh divides.

    Raises:
      LayoutError: the mesh does not divide the length, or the model's attention cannot compute it.
    """
    length = config.length or program.train.length
    rows = config.batch_size + -config.batch_size % parts("batch", mesh)
    check_length(length, mesh, "eval.length")
    with refused_for("eval"), jax.set_mesh(mesh):
        attention_names(
            program.model,
            rows,
            length,
            segmented=program.segmented,
            dropout=False,
            far=program.far_layers(length),
        )
    return rows, length


class Heldout:
    """Measures the loss of a model on fixed rows, with contiguous positions and no dropout.

    Attributes:
      fingerprint: a digest of the rows.
      length: tokens per row.
    """

    def __init__(
        self,
        program: Program,
        placement: Placement,
        config: HeldoutConfig,
        documents: Sequence[np.ndarray] | Mapping[str, Sequence[np.ndarray]],
    ) -> None:
        """Cuts documents into rows, each of one document.

        Args:
          program: the program that computes the losses.
          placement: the shardings of its arrays.
          config: which rows to measure, in which batches.
          documents: int[N_d], tokens of each document; the same for every process. For several
            texts, those of each by its name; `config.max_rows` then counts for each.

        Raises:
          ValueError: the documents have no token to predict.
          LayoutError: as for `check`.
        """
        batch_size, length = check(program, placement.mesh, config)
        several = isinstance(documents, Mapping)
        of_text = documents if isinstance(documents, Mapping) else {"": documents}
        chosen = {
            name: _choose(
                Rows(text, length=length, packing="one_document_per_row"), config.max_rows
            )
            for name, text in of_text.items()
        }
        self.fingerprint = _digest([row for rows in chosen.values() for row in rows])
        # each batch with the name of what it adds to, besides all
        self._batches = [
            (f"{EVAL_LOSS}_{name}" if several else EVAL_LOSS, batch)
            for name, rows in chosen.items()
            for batch in _batches(rows, batch_size)
        ]
        self._placement = placement
        self.length = length
        self._sum: Callable[..., tuple[jax.Array, jax.Array]] = jax.jit(
            program.heldout, out_shardings=placement.whole
        )

    def __call__(
        self,
        params: Params,
        stopping: Callable[[], bool] = lambda: False,
        tables: Tables | None = None,
    ) -> dict[str, float]:
        """Returns `eval_loss`, in nats per target, and `eval_loss_NAME` of each of several texts.

        Args:
          params: parameters of the model.
          stopping: whether to stop; called before every batch, in all processes.
          tables: as for `Program.heldout`.

        Raises:
          EvaluationStopped: `stopping` returned True.
        """
        sums: list[tuple[jax.Array, jax.Array]] = []
        learned = () if tables is None else (tables,)
        with jax.set_mesh(self._placement.mesh):
            for _, batch in self._batches:
                # the devices compute one batch while the host waits for the previous one
                jax.block_until_ready(sums[-2:-1])
                if stopping():
                    raise EvaluationStopped
                sums.append(self._sum(params, self._placement.put_whole(batch), *learned))
        totals = np.asarray(jax.device_get(sums), np.float64)
        losses = {EVAL_LOSS: float(totals[:, 0].sum() / totals[:, 1].sum())}
        names = np.array([name for name, _ in self._batches])
        for name in dict.fromkeys(names.tolist()):
            losses[name] = float(totals[names == name, 0].sum() / totals[names == name, 1].sum())
        return losses


def _choose(rows: Rows, most: int | None) -> list[Row]:
    """At most so many rows, spread evenly."""
    count = min(len(rows), most or len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _batches(rows: Sequence[Row], batch_size: int) -> list[Row]:
    """Stacks rows; the last batch is padded with rows of weight 0."""
    empty = {name: np.zeros_like(array) for name, array in rows[0].items()}
    padded = [*rows, *[empty] * (-len(rows) % batch_size)]
    return [
        {name: np.stack([row[name] for row in padded[i : i + batch_size]]) for name in empty}
        for i in range(0, len(padded), batch_size)
    ]


def _digest(rows: Sequence[Mapping[str, np.ndarray]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        for name in sorted(row):
            digest.update(f"{name} {row[name].dtype} {row[name].shape} ".encode())
            digest.update(row[name].tobytes())
    return digest.hexdigest()
