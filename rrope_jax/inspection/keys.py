"""Finds which keys of a file determine the positions, by changing one key at a time.

Each value is replaced by others and the file is read again. A key whose value makes a difference
was read, whatever code read it; no list of keys has to be kept in step with that code.
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rrope_jax.inspection.positions import Positions
from rrope_jax.io.families.table import FAMILIES
from rrope_jax.rope.huggingface.rope_types import KEY_OF_FIELD, ROPE_TYPES

Path = tuple[str, ...]
Read = Callable[[Mapping[str, Any]], Positions]

# Keys whose names contain one of these are about positions.
_ABOUT = re.compile(
    r"rope|rotary|theta|yarn|ntk|mscale|alibi|logn|xpos|nope|resonance|sliding|window|position"
    r"|context_length|n_ctx|max_seq|layer_types|temperature_(scale|length)|partial_rot|freq_base"
    r"|llama_4_scaling"
)
_LARGEST_GROUP = 200  # keys; larger groups are tables of labels and the like
LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclasses.dataclass(frozen=True)
class Keys:
    """The keys of a file, by their names with dots.

    Attributes:
      read: for each type of layer, the keys that determine something, each with the names of what
        it determines (see `Positions.facts`).
      not_read: keys about positions that determine nothing, with their values.
    """

    read: Mapping[str, Mapping[str, tuple[str, ...]]]
    not_read: Mapping[str, Any]


def find_keys(config: Mapping[str, Any], read: Read) -> Keys:
    """Finds the keys that determine the positions.

    Args:
      config: the keys of a file, possibly nested.
      read: reads them; raises ValueError for values that it does not accept.
    """
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    not_read: dict[str, Any] = {}
    with quietly():
        positions = read(config)
        facts = {name: positions.facts(name) for name in positions.by_type}
        for path, value in _leaves(config):
            name = ".".join(path)
            effect = _effect(config, path, value, read, facts)
            for layer_type, determined in effect.items():
                if path[-1] == KEY_OF_FIELD["scaling"]:  # even if no other one fits
                    determined = tuple(sorted({*determined, "scaling"}))
                found.setdefault(layer_type, {})[name] = determined
            if not effect and is_about_positions(path):
                not_read[name] = value
    return Keys({name: found.get(name, {}) for name in facts}, not_read)


def is_about_positions(path: Path) -> bool:
    """Whether the name of a key, or of a group that it is in, suggests that it is."""
    return any(_ABOUT.search(part.lower()) for part in path)


def _effect(
    config: Mapping[str, Any],
    path: Path,
    value: Any,
    read: Read,
    facts: Mapping[str, Mapping[str, Any]],
) -> dict[str, tuple[str, ...]]:
    """What changes with a key, for each type of layer; empty if nothing does."""
    changes = [_with(config, path, other) for other in _others(path[-1], value)]
    changed = _differences(changes, read, facts)
    if changed is not None or not is_about_positions(path):
        return changed or {}
    # No other value fits. A file may say a thing twice, for two releases of transformers; then all
    # places must change together.
    twins = [p for p, each in _leaves(config) if p[-1] == path[-1] and each == value]
    changes = []
    for other in _others(path[-1], value):
        both = dict(config)
        for twin in twins:
            both = _with(both, twin, other)
        changes.append(both)
    changed = _differences(changes, read, facts)
    if changed is not None:
        return changed
    # Only this value is accepted: it determines the fact of its name.
    return {
        layer_type: tuple(
            name
            for name, fact in known.items()
            if KEY_OF_FIELD.get(name, name) == path[-1] and fact == value
        )
        for layer_type, known in facts.items()
    }


def _differences(
    configs: Sequence[Mapping[str, Any]], read: Read, facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[str, ...]] | None:
    """The names of the facts that differ in any of the configs; None if all are refused."""
    changed: dict[str, set[str]] = {}
    accepted = False
    for config in configs:
        try:
            positions = read(config)
        except ValueError:
            continue
        accepted = True
        for layer_type, before in facts.items():
            names = {"layers"}
            if layer_type in positions.by_type:
                after = positions.facts(layer_type)
                names = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
            if positions.by_type.keys() != facts.keys():
                names.add("layers")
            if names:
                changed.setdefault(layer_type, set()).update(names)
    if not accepted:
        return None
    return {layer_type: tuple(sorted(names)) for layer_type, names in changed.items()}


def _leaves(config: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            if len(value) <= _LARGEST_GROUP:
                yield from _leaves(value, (*path, str(key)))
        elif value is not None:
            yield (*path, str(key)), value


def _with(config: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    key, *rest = path
    return {**config, key: _with(config[key], tuple(rest), value) if rest else value}


def _others(key: str, value: Any) -> list[Any]:
    """Other values that a key might have."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [2 * value, value // 2, value + 1] if value else [1, 2]
    if isinstance(value, float):
        return [2 * value, value / 2] if value else [0.5, 1.0]
    if isinstance(value, str):
        alike: tuple[str, ...] = ()
        if value in ROPE_TYPES:
            alike = tuple(ROPE_TYPES)
        elif key == "model_type":
            alike = tuple(FAMILIES)
        return [other for other in (*alike, f"{value}_") if other != value]
    if isinstance(value, list | tuple) and value:
        return _other_lists(list(value))
    return []


def _other_lists(values: list[Any]) -> list[Any]:
    if all(isinstance(each, str) for each in values):
        lists = [[name] * len(values) for name in dict.fromkeys((*values, *LAYER_TYPES))]
        return [each for each in (*lists, values[::-1]) if each != values]
    if all(isinstance(each, int) and each in (0, 1) for each in values):
        return [[type(each)(1 - each) for each in values], [type(each)(1) for each in values]]
    if all(isinstance(each, int | float) for each in values):
        return [[2 * each for each in values]]
    return []


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps readers from logging warnings, which `Keys.not_read` says better."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
