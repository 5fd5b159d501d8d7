"""The four deterministic context-free tasks: an automaton with a stack knows the answer.

Definitions are those of "Neural Networks and the Chomsky Hierarchy" (arXiv 2207.02098, appendix
A.1) and of the code of arXiv 2305.16843; `tasks.TASKS` says what the tokens stand for.
"""

import jax
import jax.numpy as jnp

from rrope_jax.algorithmic.answers import Answer, ended, inside, reversed_prefix, single
from rrope_jax.algorithmic.expressions import OPEN, X, draw_expression, evaluate
from rrope_jax.algorithmic.regular import MODULUS, TIMES

POP, PUSH_0 = 2, 3
STACK_END = 2

# Equations have no *, so what follows it in an expression is one less.
_EQUALS = X


def draw_stack_manipulation(key: jax.Array, length: jax.Array, width: int) -> jax.Array:
    """Draws a stack of 1 to length - 1 bits, and actions; all uniform. A single token is a bit."""
    size_key, bit_key, action_key = jax.random.split(key, 3)
    stack_size = jax.random.randint(size_key, (), 1, jnp.maximum(length, 2))
    bits_W = jax.random.randint(bit_key, (width,), 0, 2)
    actions_W = jax.random.randint(action_key, (width,), POP, PUSH_0 + 2)
    return jnp.where(jnp.arange(width) < stack_size, bits_W, actions_W)


def stack_manipulation(tokens_W: jax.Array, length: jax.Array) -> Answer:
    """Answers the stack after all actions, from the top, and an end token.

    The question is the stack from the bottom, then actions. To pop an empty stack does nothing.

    Example: 0 1 1 with "pop", "push 0" is 0 1 0 from the bottom, so the answer is 0 1 0 end.
    """
    tokens_W = jnp.where(inside(tokens_W, length), tokens_W, -1)

    def act(
        state: tuple[jax.Array, jax.Array], token: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        stack_A, size = state
        pushes = (token >= 0) & (token != POP)  # the bits at the start are pushed, too
        bit = jnp.where(token >= PUSH_0, token - PUSH_0, token)
        stack_A = stack_A.at[size].set(jnp.where(pushes, bit, stack_A[size]))
        return (stack_A, jnp.maximum(size + pushes - (token == POP), 0)), None

    empty = (jnp.zeros(tokens_W.size + 1, jnp.int32), jnp.int32(0))
    (stack_A, size), _ = jax.lax.scan(act, empty, tokens_W)
    return ended(reversed_prefix(stack_A, size), size, STACK_END)


def reverse_string(tokens_W: jax.Array, length: jax.Array) -> Answer:
    """Answers the string from its end to its start.

    Example: the answer to 0 1 1 is 1 1 0.
    """
    return Answer(reversed_prefix(tokens_W, length), length)


def draw_modular_arithmetic_brackets(key: jax.Array, length: jax.Array, width: int) -> jax.Array:
    """Draws an expression with +, - and *; see `expressions.draw_expression`."""
    return draw_expression(key, length, width, operators=3)


def modular_arithmetic_brackets(tokens_W: jax.Array, length: jax.Array) -> Answer:
    """Answers the value of an expression with brackets, modulo five.

    Example: ((1-3)*-4) is 8, so the answer is 3.
    """
    return single(evaluate(tokens_W, length)[0])


def draw_solve_equation(key: jax.Array, length: jax.Array, width: int) -> jax.Array:
    """Draws an expression with + and -, hides one number, and appends = and the value.

    The hidden number is the first one at or after a uniform position, cyclically.
    """
    expression_key, place_key = jax.random.split(key)
    size = length - 2
    tokens_W = draw_expression(expression_key, size, width, operators=2)
    value = evaluate(tokens_W, size)[0]
    at_W = jnp.arange(width)
    start = jax.random.randint(place_key, (), 0, size)
    is_number_W = (at_W < size) & (tokens_W < MODULUS)
    hidden = jnp.argmin(jnp.where(is_number_W, (at_W - start) % size, width))
    tokens_W = jnp.where(at_W == hidden, X, tokens_W)
    tokens_W = jnp.where(tokens_W >= OPEN, tokens_W - 1, tokens_W)
    return jnp.where(at_W == size, _EQUALS, jnp.where(at_W == size + 1, value, tokens_W))


def solve_equation(tokens_W: jax.Array, length: jax.Array) -> Answer:
    """Answers the number x that makes an equation true, modulo five.

    Without products, x has the factor 1 or -1, which is its own inverse; so x is unique.

    Example: ((x-3)+1)=2 has the solution 4.
    """
    expression_W = jnp.where(tokens_W >= TIMES, tokens_W + 1, tokens_W)
    constant, factor = evaluate(expression_W, length - 2)
    return single(factor * (tokens_W[length - 1] - constant) % MODULUS)
