"""Reads our model folders and the checkpoints of training runs."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.typing import DTypeLike

from rrope_jax.io import json_text
from rrope_jax.io.description import Description
from rrope_jax.io.orbax import checksums
from rrope_jax.io.orbax.layout import description_from_json, layout_of
from rrope_jax.io.paths import check_orbax
from rrope_jax.io.source import Source
from rrope_jax.io.tokenizer.files import TokenizerFiles
from rrope_jax.io.weights import Array, Part, Weight, parameter_shapes
from rrope_jax.model.int8 import Int8Kernel, quantize


def is_orbax(path: Path) -> bool:
    """Whether a path is one of our model folders, a training workdir or one checkpoint in it."""
    return layout_of(path) is not None


class OrbaxSource(Source):
    """The model in a model folder or a training workdir."""

    def __init__(self, path: Path) -> None:
        """Opens one of our model folders, a training workdir (at its newest step) or one step.

        Raises:
          ValueError: the path is none of these, or Orbax cannot read from a path with its name.
        """
        check_orbax(path, writing=False)
        layout = layout_of(path)
        if layout is None:
            raise ValueError(f"{path} is no model folder and no training workdir")
        self.path: Path = path
        self._layout = layout

    def _describe(self) -> Description:
        file = self._layout.description
        try:
            value = json_text.parse(file.read_bytes())
            fields = value if self._layout.key is None else value[self._layout.key]
            tokenizer = TokenizerFiles.of_folder(self._layout.tokenizer)
            description = description_from_json(fields, tokenizer)
            _ = self._sums  # verifies the description's checksum
        except (KeyError, TypeError):  # TypeError: the JSON value is not an object
            raise ValueError(
                f"{file} describes no model: the run is not one of rrope train"
            ) from None
        except (ValueError, OSError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        return description

    @functools.cached_property
    def _sums(self) -> Mapping[str, str] | None:
        """Checksums of the arrays, or None if none were saved; verifies that of the description.

        Raises:
          ValueError: the description differs from what was saved.
        """
        file = self._layout.checksums
        if not file.exists():
            return None
        value = json_text.parse(self._layout.description.read_bytes())
        try:
            return checksums.check_metadata(json_text.parse(file.read_bytes()), value)
        except ValueError as error:
            is_model_folder = self._layout.key is None
            hint = f", or remove {file} if you have changed it yourself" if is_model_folder else ""
            raise ValueError(f"{error}; give another checkpoint{hint}") from error

    @property
    def stored(self) -> dict[str, Any]:
        """The shape of each stored parameter by its dotted path."""
        return {name: tuple(leaf.shape) for name, leaf in self._leaves.items()}

    @functools.cached_property
    def _leaves(self) -> dict[str, Any]:
        """The shape and dtype of each stored parameter by its dotted path."""
        try:
            tree = ocp.PyTreeCheckpointHandler().metadata(self._layout.arrays).tree
            for key in self._layout.inside:
                tree = tree[key]
        except Exception as error:  # Orbax and its drivers raise many types
            raise ValueError(
                f"{self._layout.arrays} is damaged or no checkpoint of a model "
                f"({' '.join(str(error).split())[:200]})"
            ) from error
        flat, _ = jax.tree_util.tree_flatten_with_path(
            tree, is_leaf=lambda leaf: hasattr(leaf, "shape")
        )
        return {".".join(str(entry.key) for entry in path): leaf for path, leaf in flat}

    def _check(self) -> None:
        shapes = {w.path: shape for w, shape in parameter_shapes(self.description.model).items()}
        for name in sorted(shapes.keys() | self.stored.keys()):
            if shapes.get(name) != self.stored.get(name):
                raise ValueError(
                    f"{self._layout.arrays}: parameter {name!r} has shape "
                    f"{self.stored.get(name)}, but the model's config makes it {shapes.get(name)}"
                )

    def matrix(self, weight: Weight, layer: int, part: Part | None = None) -> Array:
        """Returns one weight or a part of it; see `Source.matrix`.

        Checksums cover whole parameters, so all layers are read. The last parameter read stays in
        memory.
        """
        kernel: Array = self._kernel(weight)
        matrix = weight.to_matrix(kernel[layer] if weight.stacked else kernel)
        return matrix if part is None else matrix[np.ix_(*part)]

    @functools.lru_cache(maxsize=1)  # noqa: B019  a source is used for one conversion only
    def _kernel(self, weight: Weight) -> Array:
        return self.array(weight.path)

    def array(self, path: str) -> Array:
        """Reads one stored array into host memory, by its dotted path."""
        array: Array = self._restore(path, ocp.RestoreArgs(restore_type=np.ndarray))
        return array

    def parameter(
        self,
        weight: Weight,
        sharding: jax.sharding.Sharding | None = None,
        dtype: DTypeLike = np.float32,
    ) -> jax.Array:
        """Loads one parameter; see `Source`. Orbax reads only chunks that overlap the shards.

        Checksums cover whole parameters as they are stored, so its devices hold it in float32 until
        it is rounded.
        """
        arguments = ocp.ArrayRestoreArgs(
            sharding=sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0]),
            global_shape=self.stored[weight.path],
            dtype=np.dtype(self._leaves[weight.path].dtype),
        )
        restored: jax.Array = self._restore(weight.path, arguments)
        return restored.astype(dtype)

    def int8_kernel(
        self,
        weight: Weight,
        sharding: jax.sharding.Sharding | None = None,
        scale_sharding: jax.sharding.Sharding | None = None,
    ) -> Int8Kernel:
        """Loads one kernel in int8; see `Source`, and `parameter` on memory."""
        assert weight.inputs
        kernel = self.parameter(weight, sharding)
        shardings = None if sharding is None else Int8Kernel(sharding, scale_sharding)
        inputs = tuple(range(1, 1 + weight.inputs))
        rounded: Int8Kernel = jax.jit(quantize, static_argnums=1, out_shardings=shardings)(
            kernel, inputs
        )
        if not jnp.isfinite(rounded.scale).all():
            raise ValueError(f"{weight.path} is not finite; check the checkpoint")
        return rounded

    def _restore(self, path: str, arguments: ocp.RestoreArgs) -> Any:
        """Reads a parameter as it is stored, which its checksum covers, and returns float32."""
        keys = (*self._layout.inside, *path.split("."))
        leaf = self._leaves[path]
        try:
            tree = ocp.PyTreeCheckpointer().restore(
                self._layout.arrays,
                args=ocp.args.PyTreeRestore(
                    item=_nest(keys, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)),
                    restore_args=_nest(keys, arguments),
                    partial_restore=True,
                ),
            )
        except Exception as error:  # Orbax and its drivers raise many types
            raise ValueError(
                f"{self._layout.arrays} is damaged: {path} cannot be read "
                f"({' '.join(str(error).split())[:200]})"
            ) from error
        for key in keys:
            tree = tree[key]
        if self._sums is not None:
            try:
                checksums.check_array(self._sums, ".".join(keys), tree)
            except ValueError as error:
                raise ValueError(
                    f"{self._layout.arrays} is {error}; give another checkpoint, such as another "
                    "step of the run"
                ) from error
        return tree.astype(np.float32, copy=False)


def _nest(keys: tuple[str, ...], leaf: Any) -> Any:
    for key in reversed(keys):
        leaf = {key: leaf}
    return leaf
