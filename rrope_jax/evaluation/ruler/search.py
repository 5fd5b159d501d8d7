"""How much text fits a context."""

from collections.abc import Callable

from rrope_jax.evaluation.ruler.sample import Sizes


def largest_size(sizes: Sizes, tokens_of: Callable[[int], int], room: int) -> int | None:
    """The largest size whose prompt has at most `room` tokens; None if not even the least has.

    The search goes by the same sizes as RULER's: from `sizes.shrink` to three times what the tokens
    of that size let expect. Beyond, it goes on where all of these fit; below, where none does.

    Args:
      sizes: the sizes to choose from.
      tokens_of: size -> tokens of its prompt, about in proportion.
      room: tokens.
    """
    offset = sizes.least % sizes.unit

    def search(low: int, high: int) -> int | None:
        best = None
        while low <= high:
            middle = (low + high) // 2
            if tokens_of(offset + sizes.unit * middle) <= room:
                best, low = middle, middle + 1
            else:
                high = middle - 1
        return None if best is None else offset + sizes.unit * best

    least = (sizes.least - offset) // sizes.unit
    low = max(least, -(-(sizes.shrink - offset) // sizes.unit))
    first = offset + sizes.unit * low
    expected = int(room / (tokens_of(first) / first) * 3) // sizes.unit
    high = max(expected, 2 * low)
    best = search(low, high)
    if best is None:
        return search(least, low - 1)
    while best == offset + sizes.unit * high:
        low, high = high + 1, 2 * high
        best = search(low, high) or best
    return best
