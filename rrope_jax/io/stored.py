"""Where the weights of a model are among the tensors of a checkpoint.

Most weights are tensors of their own. Some families fuse several into one tensor, one below the
other: those weights have the same name, and the order of `WEIGHTS`.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from rrope_jax.io.weights import Part, Weight, matrix_shapes
from rrope_jax.model import ModelConfig


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint.

    Attributes:
      name: its name.
      shape: its shape, [out, in] or [out].
      weights: the weights that it holds, in the order of their rows.
      layer: the layer of all of them.
    """

    name: str
    shape: tuple[int, ...]
    weights: tuple[Weight, ...]
    layer: int


class Place(NamedTuple):
    """Where one weight is.

    Attributes:
      name: the name of the tensor.
      rows: the weight's rows of it; None if the tensor is the weight.
      shape: the shape of the weight.
    """

    name: str
    rows: range | None
    shape: tuple[int, ...]

    def cut(self, part: Part | None) -> Part | None:
        """The part of the tensor that is the given part of the weight; None for all of it."""
        if self.rows is None:
            return part
        first, *others = tuple(map(range, self.shape)) if part is None else part
        return (range(self.rows.start + first.start, self.rows.start + first.stop), *others)


class Layout:
    """The tensors of a model in one format.

    Attributes:
      tensors: the tensors by name, in the order of layers within each kind of weight.
    """

    def __init__(self, config: ModelConfig, names: Mapping[str, str]) -> None:
        """Lays out a model.

        Args:
          config: the model.
          names: the name of each weight by its `path`, with `{layer}` if it is per layer.
        """
        self.tensors: dict[str, Tensor] = {}
        self._places: dict[tuple[Weight, int], Place] = {}
        members: dict[str, list[tuple[Weight, int]]] = {}
        shapes = matrix_shapes(config)
        for weight, layer in shapes:
            name = names[weight.path].format(layer=layer)
            members.setdefault(name, []).append((weight, layer))
        for name, keys in members.items():
            start = 0
            for key in keys:
                rows = range(start, start + shapes[key][0])
                start = rows.stop
                self._places[key] = Place(name, None if len(keys) == 1 else rows, shapes[key])
            shape = (start, *shapes[keys[0]][1:])
            self.tensors[name] = Tensor(name, shape, tuple(w for w, _ in keys), keys[0][1])

    def place(self, weight: Weight, layer: int) -> Place:
        """Where one weight is."""
        return self._places[weight, layer]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensors.values())


def check_tensors(
    stored: Mapping[str, tuple[int, ...]],
    config: ModelConfig,
    names: Mapping[str, str],
    *,
    where: str,
    ignored: Collection[str] = (),
) -> None:
    """Checks that a checkpoint has exactly the weights of its model, in the right shapes.

    Args:
      stored: shapes in the checkpoint by name.
      config: the model's config.
      names: the name of each weight, as for `Layout`.
      where: the checkpoint's name, for error messages.
      ignored: names in the checkpoint that are not read.

    Raises:
      ValueError: weights are missing, unknown or misshaped; the message names them.
    """
    if config.num_layers > len(stored):  # a damaged number must not cause a near-endless loop
        raise ValueError(
            f"{where} has {len(stored)} weights, but by its config {config.num_layers} layers"
        )
    shapes = {tensor.name: tensor.shape for tensor in Layout(config, names)}
    if missing := sorted(shapes.keys() - stored.keys()):
        raise ValueError(f"{where} has no weight {_some(missing)}; the model's config needs it")
    if unknown := sorted(stored.keys() - shapes.keys() - set(ignored)):
        raise ValueError(
            f"{where} has the unknown weight {_some(unknown)}: the model that its config describes "
            "has no such part (a bias, a norm, an expert), and dropping it would change the model"
        )
    for name, shape in shapes.items():
        if stored[name] != shape:
            raise ValueError(
                f"{where}: {name} has shape {list(stored[name])}, but the model's config makes it "
                f"{list(shape)}; one of the two is wrong"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more
