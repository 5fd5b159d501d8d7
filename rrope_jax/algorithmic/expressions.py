"""Arithmetic expressions with brackets, modulo five: drawn and evaluated under jit.

An expression of n tokens is a number d for n = 1, -d for 2, (d) for 3, (-d) for 4, and for more
(left op right) with expressions of any lengths that fit. `X` is an unknown number.
"""

import jax
import jax.numpy as jnp

from rrope_jax.algorithmic.answers import inside
from rrope_jax.algorithmic.regular import MINUS, MODULUS, PLUS, TIMES

OPEN, CLOSE, X = TIMES + 1, TIMES + 2, TIMES + 3


def draw_expression(key: jax.Array, length: jax.Array, width: int, operators: int) -> jax.Array:
    """Draws an expression; at every level, the length of the left side is uniform.

    Works in place: a subexpression that is not drawn yet is its negative length, at its first
    position. Every step draws what is at one position, from left to right.

    Args:
      key: A random key.
      length: Tokens of the expression, from 1 to the width; traced.
      width: W, static.
      operators: The first 2 or 3 of +, -, *; each is equally likely.

    Returns:
      int32[W], zeros after the expression.
    """
    number_key, operator_key, split_key = jax.random.split(key, 3)
    numbers_W = jax.random.randint(number_key, (width,), 0, MODULUS)
    operators_W = jax.random.randint(operator_key, (width,), PLUS, PLUS + operators)
    splits_W = jax.random.bits(split_key, (width,)) >> 1  # fits int32

    def step(at: jax.Array, tokens_W: jax.Array) -> jax.Array:
        left_size = 1 + splits_W[at].astype(jnp.int32) % jnp.maximum(-tokens_W[at] - 4, 1)
        return _expand(tokens_W, at, left_size, numbers_W[at], operators_W[at])

    start_W = jnp.zeros(width, jnp.int32).at[0].set(-jnp.asarray(length, jnp.int32))
    tokens_W: jax.Array = jax.lax.fori_loop(0, width, step, start_W)
    return tokens_W


def _expand(
    tokens_W: jax.Array, at: jax.Array, left_size: jax.Array, number: jax.Array, operator: jax.Array
) -> jax.Array:
    """Replaces the subexpression that starts at a position by its first level, if there is one."""
    size = -tokens_W[at]
    in_brackets, binary = size >= 3, size >= 5
    first = jnp.where(size == 1, number, jnp.where(size == 2, MINUS, OPEN))
    inner = jnp.where(binary, -left_size, jnp.where(in_brackets, 2 - size, -1))
    skip = tokens_W.size  # positions beyond the width are dropped
    where = jnp.stack(
        [
            jnp.where(size >= 1, at, skip),
            jnp.where(size >= 2, at + 1, skip),
            jnp.where(binary, at + 1 + left_size, skip),
            jnp.where(binary, at + 2 + left_size, skip),
            jnp.where(in_brackets, at + size - 1, skip),
        ]
    )
    right = -(size - 3 - left_size)
    what = jnp.stack([first, inner, operator, right, jnp.full_like(size, CLOSE)])
    return tokens_W.at[where].set(what, mode="drop")


def evaluate(tokens_W: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Evaluates an expression that contains X at most once and never as a factor.

    Args:
      tokens_W: int32[W], an expression; what follows it is ignored.
      length: Its number of tokens.

    Returns:
      Integers c and s in [0, MODULUS): the expression is c + s X modulo `MODULUS`.
    """
    levels = tokens_W.size // 2 + 2  # brackets come in pairs
    tokens_W = jnp.where(inside(tokens_W, length), tokens_W, -1)  # a token that does nothing

    def read(state: tuple[jax.Array, ...], token: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        # By level of brackets: the value so far (c, s), and the operator that waits for its right
        # side. `sign` and `complete` are about the operand before the token.
        value_L2, operator_L, level, sign, complete = state
        opens, closes = token == OPEN, token == CLOSE
        operand = ((token >= 0) & (token < MODULUS)) | (token == X) | closes
        negates = (token == MINUS) & ~complete
        operates = (token >= PLUS) & (token <= TIMES) & complete
        number_2 = jnp.where(token == X, jnp.array([0, 1]), jnp.stack([token, jnp.int32(0)]))
        right_2 = sign * jnp.where(closes, value_L2[level], number_2)

        level = level + opens - closes
        value_2, operator = value_L2[level], operator_L[level]
        result_2 = _apply(operator, value_2, right_2)
        value_2 = jnp.where(opens, 0, jnp.where(operand, result_2, value_2))
        operator = jnp.where(opens, PLUS, jnp.where(operates, token, operator))
        state = (
            value_L2.at[level].set(value_2),
            operator_L.at[level].set(operator),
            level,
            jnp.where(negates, -sign, jnp.where(operand, 1, sign)),
            jnp.where(operates | opens, False, complete | operand),
        )
        return state, None

    start: tuple[jax.Array, ...] = (
        jnp.zeros((levels, 2), jnp.int32),
        jnp.full(levels, PLUS),
        jnp.int32(0),
        jnp.int32(1),
        jnp.bool_(False),
    )
    (value_L2, *_), _ = jax.lax.scan(read, start, tokens_W)
    return value_L2[0, 0], value_L2[0, 1]


def _apply(operator: jax.Array, left_2: jax.Array, right_2: jax.Array) -> jax.Array:
    """Applies an operator to c + s X and c' + s' X, of which only one side of * contains X."""
    product_2 = jnp.stack([left_2[0] * right_2[0], left_2[0] * right_2[1] + left_2[1] * right_2[0]])
    total_2 = left_2 + jnp.where(operator == MINUS, -right_2, right_2)
    return jnp.where(operator == TIMES, product_2, total_2) % MODULUS
