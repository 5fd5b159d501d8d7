"""Writes our own model folders."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax import nnx

from rrope_jax.io.orbax import checksums
from rrope_jax.io.orbax.layout import (
    CHECKSUMS_JSON,
    MODEL_JSON,
    PARAMS,
    TOKENIZER,
    description_to_json,
)
from rrope_jax.io.paths import check_orbax
from rrope_jax.io.source import Source, read_parameter
from rrope_jax.io.weights import parameter_shapes

# Size of a chunk, the least that is read for any part of an array.
_CHUNK_BYTES = 1 << 20


class _PieceByPiece(ocp.type_handlers.NumpyHandler):  # type: ignore[misc]
    """Writes arrays one by one, a row of chunks at a time, since TensorStore copies each chunk."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._turn = asyncio.Lock()

    async def _open_and_write(self, value: np.ndarray, tspec: Any, ts_context: Any) -> None:
        async with self._turn:
            spec = ts.Spec(tspec)
            array: Any = await ts.open(spec, create=True, open=True, context=ts_context)
            rows = array.chunk_layout.write_chunk.shape[0]
            for row in range(0, len(value), rows):
                piece = slice(row, row + rows)
                await array[piece].write(value[piece], can_reference_source_data_indefinitely=True)


def write(source: Source, folder: Path) -> None:
    """Writes a model folder.

    Args:
      source: the model.
      folder: an existing empty folder.

    Raises:
      ValueError: Orbax cannot save in a folder with this name.
      OSError: the folder cannot be written.
    """
    check_orbax(folder, writing=True)
    description = source.description
    params: dict[tuple[str, ...], np.ndarray] = {}
    save_args: dict[tuple[str, ...], ocp.SaveArgs] = {}
    shapes = parameter_shapes(description.model)
    for weight in sorted(shapes, key=lambda weight: -math.prod(shapes[weight])):
        path = tuple(weight.path.split("."))
        params[path] = read_parameter(source, weight)
        save_args[path] = ocp.SaveArgs(
            chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if weight.stacked else ()
        )
    tree: dict[str, Any] = nnx.traversals.unflatten_mapping(params)
    arguments = ocp.args.PyTreeSave(tree, nnx.traversals.unflatten_mapping(save_args))
    # By default Orbax copies all arrays and holds all compressed data in memory until the end.
    handler = ocp.PyTreeCheckpointHandler(
        use_compression=False,
        type_handler_registry=ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, _PieceByPiece()),
            (jax.Array, ocp.type_handlers.ArrayHandler()),  # Orbax warns if it is missing
        ),
    )
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(folder / PARAMS, args=arguments)
    except Exception as error:  # Orbax and its drivers raise many types
        raise OSError(" ".join(str(error).split())[:300]) from error
    model = description_to_json(description)
    sums = {
        checksums.ARRAYS: checksums.of_tree(tree),
        checksums.METADATA: checksums.of_json(model),
    }
    for name, value in ((MODEL_JSON, model), (CHECKSUMS_JSON, sums)):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    if description.tokenizer is not None:
        description.tokenizer.write(folder / TOKENIZER)
