"""Hostile changes of JSON-like trees and of bytes, all drawn from one seeded generator.

An input begins as a tree of dicts, lists and leaves (a folder's files by name, each with its
content), so that most changes leave a file that can be parsed and is wrong further in.
"""

import math
from collections.abc import Callable
from random import Random
from typing import Any

_HUGE = 10**400  # a JSON number that no float holds

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    *(0, 1, -1, 2, 3, 7, 255, 65_536, 10**6),
    *(2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64, -(2**31), -(2**63)),
    *(_HUGE, -_HUGE),
    *(0.0, -0.0, 0.5, 1.5, -1.5, 4.0, 5e-324, 1e-30, 1e-5, 1e9, 1e30, 1.7e308, -1e308),
    *(math.nan, math.inf, -math.inf),
    *("", " ", "null", "4", "1e400", "nan", "\0", "\n", "\u00e9\U0001f600", "\ud800", "../x", "/"),
    *("a" * 300, "%s%n{0}", "*", "[", "**/*", "yarn", "default", "llama", "float32"),
    *([], [[]], [1], [None], [math.nan], ["a", "a"], list(range(300)), [-1] * 64),
    *({}, {"": None}, {"rope_type": "yarn"}, {"content": "a"}, {"type": []}),
    b"",
    b"\xff\x00",
)
_SIZES = (0, 1, 7, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
_RUNS = (b"[", b"{", b"(", b"9", b"\0", b"\xff", b"\n", b" ", b'{"a":', b"e9", b"\\u0000")
_DEPTHS = (3, 60, 300)


def mutated(random: Random, tree: Any, others: list[Any]) -> Any:
    """A copy of a tree with one to a few changes; what is unchanged is shared.

    Args:
      random: where all choices come from.
      tree: dicts with string keys, lists, numbers, strings, bools, None, bytes.
      others: trees whose parts may be put into this one.
    """
    for _ in range(_few(random)):
        tree = _changed(random, tree, others)
    return tree


def mutated_bytes(random: Random, data: bytes, others: list[bytes]) -> bytes:
    """Bytes with one to a few changes: of bits, of lengths, cut off, repeated, put together."""
    for _ in range(_few(random)):
        data = random.choice(_BYTE_CHANGES)(random, data, others)
    return data


def _few(random: Random) -> int:
    count = 1
    while count < 8 and random.random() < 0.4:
        count += 1
    return count


def _changed(random: Random, node: Any, others: list[Any]) -> Any:
    """Goes down to a random node and changes that one."""
    if isinstance(node, dict | list) and node and random.random() < 0.8:
        copy: Any = node.copy()
        key = random.choice(list(node)) if isinstance(node, dict) else random.randrange(len(node))
        if random.random() < 0.15:
            return _container_change(random, copy, key)
        copy[key] = _changed(random, node[key], others)
        return copy
    draw = random.random()
    if draw < 0.45:
        return random.choice(HOSTILE)
    if draw < 0.7:
        return _near(random, node)
    if draw < 0.85:
        return _part(random, random.choice(others))
    if draw < 0.95:
        return [node] if random.random() < 0.5 else {random.choice(("a", "type", "0")): node}
    for _ in range(random.choice(_DEPTHS)):
        node = [node] if draw < 0.975 else {"a": node}
    return node


def _container_change(random: Random, container: Any, key: Any) -> Any:
    """Drops, renames, repeats or swaps an entry."""
    change, value = random.randrange(4), container[key]
    if change == 0:
        del container[key]
    elif change == 1:
        other = random.choice(list(container) if isinstance(container, dict) else [key])
        container[key], container[other] = container[other], value
    elif isinstance(container, list):
        container[key:key] = [value] * random.choice((1, 2, 100))
    else:
        if change == 2:
            del container[key]
        container[_near_string(random, key)] = value
    return container


def _near(random: Random, leaf: Any) -> Any:
    """A value that is like a leaf, but another."""
    if isinstance(leaf, bool) or leaf is None:
        return random.choice((not leaf, str(leaf).lower(), int(bool(leaf))))
    if isinstance(leaf, int):
        near = (leaf + 1, leaf - 1, -leaf, 2 * leaf, leaf << 31, float(leaf % 2**53), str(leaf))
        return random.choice(near)
    if isinstance(leaf, float):
        return random.choice((-leaf, leaf * 1e6, leaf * 1e-6, leaf * 1e300, 1 - leaf, str(leaf)))
    if isinstance(leaf, str):
        return _near_string(random, leaf)
    if isinstance(leaf, bytes):
        return mutated_bytes(random, leaf, [leaf])
    return type(leaf)()


def _near_string(random: Random, text: str) -> str:
    place = random.randint(0, len(text))
    grown = text[:place] + random.choice(("x", "_", "\0", ".", "/", " ")) + text[place:]
    return random.choice((text[:place], text[place:], text.upper(), text * 2, grown))


def _part(random: Random, tree: Any) -> Any:
    while isinstance(tree, dict | list) and tree and random.random() < 0.8:
        tree = random.choice(list(tree.values()) if isinstance(tree, dict) else tree)
    return tree


def _flip(random: Random, data: bytes, others: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(min(len(data), random.choice((1, 1, 8)))):
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _length(random: Random, data: bytes, others: list[bytes]) -> bytes:
    width = random.choice((1, 2, 4, 8))
    place = random.randint(0, max(0, len(data) - width))
    number = random.choice(_SIZES) % 256**width
    order = random.choice(("little", "little", "big"))
    return data[:place] + number.to_bytes(width, order) + data[place + width :]


def _cut(random: Random, data: bytes, others: list[bytes]) -> bytes:
    start, stop = sorted(random.randint(0, len(data)) for _ in range(2))
    return random.choice((data[:start], data[start:], data[:start] + data[stop:]))


def _repeat(random: Random, data: bytes, others: list[bytes]) -> bytes:
    start = random.randint(0, len(data))
    part = data[start : start + random.choice((1, 16, 300))]
    return data[:start] + part * random.choice((2, 9, 100)) + data[start:]


def _run(random: Random, data: bytes, others: list[bytes]) -> bytes:
    place = random.randint(0, len(data))
    run = random.choice(_RUNS) * random.choice((1, 1, 40, 5_000, 100_000))
    return data[:place] + run + data[place:]


def _splice(random: Random, data: bytes, others: list[bytes]) -> bytes:
    other = random.choice(others)
    return data[: random.randint(0, len(data))] + other[random.randint(0, len(other)) :]


_BYTE_CHANGES: tuple[Callable[[Random, bytes, list[bytes]], bytes], ...] = (
    _flip,
    _flip,
    _length,
    _length,
    _cut,
    _repeat,
    _run,
    _splice,
)
