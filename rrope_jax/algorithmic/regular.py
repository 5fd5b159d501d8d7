"""The four regular tasks: a finite automaton that reads the question once knows the answer.

Definitions are those of "Neural Networks and the Chomsky Hierarchy" (arXiv 2207.02098, appendix
A.1) and of the code of arXiv 2305.16843; `tasks.TASKS` says what the tokens stand for.
"""

import jax
import jax.numpy as jnp

from rrope_jax.algorithmic.answers import Answer, inside, single

MODULUS = 5
"""Numbers of the arithmetic tasks are in [0, MODULUS)."""
CYCLE = 5
"""Number of states of `cycle_navigation`."""

PLUS, MINUS, TIMES = MODULUS, MODULUS + 1, MODULUS + 2


def even_pairs(tokens_W: jax.Array, length: jax.Array) -> Answer:
    """Answers 1 if the string has an odd number of 01 and 10 pairs in all, else 0.

    Example: 0 0 1 0 has one 01 and one 10, so the answer is 0; 0 1 1 has one 01, so it is 1.
    """
    changes = (tokens_W[1:] != tokens_W[:-1]) & inside(tokens_W, length)[1:]
    return single(jnp.sum(changes) % 2)


def parity_check(tokens_W: jax.Array, length: jax.Array) -> Answer:
    """Answers 1 if the string has an odd number of ones, else 0.

    Example: 1 0 1 1 has three ones, so the answer is 1.
    """
    return single(jnp.sum(jnp.where(inside(tokens_W, length), tokens_W, 0)) % 2)


def cycle_navigation(tokens_W: jax.Array, length: jax.Array) -> Answer:
    """Answers the state on a cycle of five after steps from state 0.

    Example: 2 2 1 0 is forward, forward, stay, back, so the answer is 1.
    """
    return single(jnp.sum(jnp.where(inside(tokens_W, length), tokens_W - 1, 0)) % CYCLE)


def draw_modular_arithmetic(key: jax.Array, length: jax.Array, width: int) -> jax.Array:
    """Draws numbers and, between them, operators, all uniform."""
    del length
    number_key, operator_key = jax.random.split(key)
    numbers_W = jax.random.randint(number_key, (width,), 0, MODULUS)
    operators_W = jax.random.randint(operator_key, (width,), PLUS, TIMES + 1)
    return jnp.where(jnp.arange(width) % 2 == 0, numbers_W, operators_W)


def modular_arithmetic(tokens_W: jax.Array, length: jax.Array) -> Answer:
    """Answers the value of an expression without brackets, modulo five; products come first.

    Products are reduced as they grow. (The code of arXiv 2305.16843 reduces only at the end, so a
    chain of more than 15 products of 4 overflows its int32.)

    Example: 4 - 2 * 3 is -2, so the answer is 3.
    """
    numbers_N = tokens_W[::2]
    # An implied + starts the expression.
    before_N = jnp.concatenate([jnp.full(1, PLUS), tokens_W[1::2]])[: numbers_N.size]
    counts_N = inside(tokens_W, length)[::2]
    signed_N = jnp.where(before_N == MINUS, -numbers_N, numbers_N) % MODULUS
    starts_N = before_N != TIMES

    def extend(
        left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        product = jnp.where(right[0], right[1], left[1] * right[1] % MODULUS)
        return left[0] | right[0], product

    _, products_N = jax.lax.associative_scan(extend, (starts_N, signed_N))
    last_N = counts_N & ~jnp.append(counts_N[1:] & ~starts_N[1:], False)
    return single(jnp.sum(jnp.where(last_N, products_N, 0)) % MODULUS)
