"""The three tasks, against the paper's rows, rows worked by hand and a plain-Python definition."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrope_jax.posgen import COMBINATIONS, TASKS, generate

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "posgen_golden.json").read_text())


def plain_row(
    task: str, seed: Sequence[int], length: int, modulus: int, j: int, k: int
) -> list[int]:
    """One sequence by the definition of section 5 of the paper, token by token."""
    row = list(seed)
    for at in range(j + k, length):
        far = {"recursive": at - (j + k), "cot": 0, "semi_recursive": (at - (j + k)) // 2}[task]
        row.append((sum(row[far : far + j]) + sum(row[at - k : at])) % modulus)
    return row


@st.composite
def settings_of_a_task(draw: st.DrawFn) -> tuple[int, int, int, int, list[list[int]]]:
    """modulus, j, k, length and a few seed rows."""
    modulus = draw(st.integers(2, 23))
    j, k = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    length = draw(st.integers(j + k, 24))
    token = st.integers(0, modulus - 1)
    seeds = draw(st.lists(st.lists(token, min_size=j + k, max_size=j + k), min_size=1, max_size=3))
    return modulus, j, k, length, seeds


class TestRows:
    @pytest.mark.smoke
    @pytest.mark.parametrize("task", TASKS)
    def test_figure_2_of_the_paper(self, task: str) -> None:
        row = generate(
            task,
            jnp.array([GOLDEN["seed"]]),
            len(GOLDEN[task]),
            modulus=GOLDEN["modulus"],
            j=GOLDEN["j"],
            k=GOLDEN["k"],
        )
        assert row.dtype == jnp.int32
        assert row.tolist() == [GOLDEN[task]]

    @pytest.mark.parametrize(
        ("task", "expected"),
        [
            # m=5, j=2, k=1. Token 4 of cot is x0 + x1 + x3 = 1 + 2 + 1; token 5 of semi_recursive
            # is x1 + x2 + x4 = 2 + 3 + 4, since its far tokens moved on by one after two steps.
            ("recursive", [1, 2, 3, 1, 1, 0, 2]),
            ("cot", [1, 2, 3, 1, 4, 2, 0]),
            ("semi_recursive", [1, 2, 3, 1, 4, 4, 4]),
        ],
    )
    def test_two_far_tokens_and_one_near_by_hand(self, task: str, expected: list[int]) -> None:
        row = generate(task, [[1, 2, 3]], 7, modulus=5, j=2, k=1)
        assert row.tolist() == [expected]

    @pytest.mark.parametrize(
        ("task", "expected"),
        [
            # m=10, j=1, k=1: Fibonacci's last digits; x0 added at each step; x0 and x1 twice each
            ("recursive", [1, 1, 2, 3, 5, 8, 3]),
            ("cot", [1, 1, 2, 3, 4, 5, 6]),
            ("semi_recursive", [1, 1, 2, 3, 4, 5, 7]),
        ],
    )
    def test_one_far_token_and_one_near_by_hand(self, task: str, expected: list[int]) -> None:
        assert generate(task, [[1, 1]], 7, modulus=10, j=1, k=1).tolist() == [expected]

    @settings(max_examples=25)
    @given(st.sampled_from(sorted(TASKS)), settings_of_a_task())
    def test_definition(
        self, task: str, setting: tuple[int, int, int, int, list[list[int]]]
    ) -> None:
        modulus, j, k, length, seeds = setting
        rows = generate(task, seeds, length, modulus=modulus, j=j, k=k)
        assert rows.tolist() == [plain_row(task, s, length, modulus, j, k) for s in seeds]

    def test_seed_alone_when_nothing_is_to_be_generated(self) -> None:
        assert generate("cot", [[4, 3, 2, 1]], 4).tolist() == [[4, 3, 2, 1]]

    def test_defaults_are_the_paper_s(self) -> None:
        seed = [16, 0, 9, 3]
        assert generate("cot", [seed], 30).tolist() == [plain_row("cot", seed, 30, 17, 1, 3)]

    def test_no_rows(self) -> None:
        assert generate("recursive", np.zeros((0, 4), np.int32), 9).shape == (0, 9)


@pytest.mark.parametrize(("modulus", "j", "k"), [(17, 1, 3), (6, 3, 1), (11, 2, 2)])
class TestShortcut:
    """With the modular sum, consecutive windows overlap and cancel: what a model may learn instead.

    Past the first generated token, a token follows from its neighbour and one other, and the far
    tokens of `cot` are never needed again. docs/posgen.md tells the readers of results.
    """

    LENGTH = 40

    def _rows(self, task: str, modulus: int, j: int, k: int) -> np.ndarray:
        seeds_BS = jax.random.randint(jax.random.key(0), (16, j + k), 0, modulus)
        return np.asarray(generate(task, seeds_BS, self.LENGTH, modulus=modulus, j=j, k=k))

    def test_recursive_needs_two_tokens(self, modulus: int, j: int, k: int) -> None:
        x_BL = self._rows("recursive", modulus, j, k)
        at = np.arange(j + k + 1, self.LENGTH)
        expected = (2 * x_BL[:, at - 1] - x_BL[:, at - (j + k) - 1]) % modulus
        assert (x_BL[:, at] == expected).all()

    def test_cot_needs_no_far_token(self, modulus: int, j: int, k: int) -> None:
        x_BL = self._rows("cot", modulus, j, k)
        at = np.arange(j + k + 1, self.LENGTH)
        expected = (2 * x_BL[:, at - 1] - x_BL[:, at - k - 1]) % modulus
        assert (x_BL[:, at] == expected).all()

    def test_semi_recursive_needs_far_tokens_at_every_second_step_only(
        self, modulus: int, j: int, k: int
    ) -> None:
        x_BL = self._rows("semi_recursive", modulus, j, k)
        at = np.arange(j + k + 1, self.LENGTH)
        p = (at - (j + k)) // 2
        moved = np.where((at - (j + k)) % 2 == 0, x_BL[:, p + j - 1] - x_BL[:, p - 1], 0)
        expected = (2 * x_BL[:, at - 1] - x_BL[:, at - k - 1] + moved) % modulus
        assert (x_BL[:, at] == expected).all()


def test_first_generated_token_of_cot_needs_the_far_one() -> None:
    first, second = generate("cot", [[0, 1, 2, 3], [1, 1, 2, 3]], 5, modulus=7).tolist()
    assert (first[4], second[4]) == (6, 0)


class TestTransformations:
    def test_jit_and_vmap_give_the_same_rows(self) -> None:
        seeds_NBS = jnp.arange(24, dtype=jnp.int32).reshape(2, 3, 4) % 17
        plain = [generate("semi_recursive", seeds, 20) for seeds in seeds_NBS]
        jitted = jax.jit(generate, static_argnums=(0, 2))
        assert jitted("semi_recursive", seeds_NBS[1], 20).tolist() == plain[1].tolist()
        mapped = jax.vmap(lambda seeds: generate("semi_recursive", seeds, 20))(seeds_NBS)
        assert mapped.tolist() == [rows.tolist() for rows in plain]


class TestCombinations:
    def test_custom_function_gets_far_tokens_first(self) -> None:
        def far_minus_near(dependencies_BD: jax.Array, modulus: int) -> jax.Array:
            return (dependencies_BD[:, 0] - dependencies_BD[:, 1]) % modulus

        # 5, 2, then 5 - 2 = 3, 5 - 3 = 2, 5 - 2 = 3 ...
        row = generate("cot", [[5, 2]], 6, modulus=9, j=1, k=1, combine=far_minus_near)
        assert row.tolist() == [[5, 2, 3, 2, 3, 2]]

    @pytest.mark.parametrize(
        ("name", "share"),
        [
            ("sine_squared", lambda total, m: math.sin(total) ** 2),
            ("sine_of_turn", lambda total, m: abs(math.sin(2 * math.pi * (total % m) / m))),
        ],
    )
    @pytest.mark.parametrize("modulus", [3, 17])
    def test_sines_follow_their_formula(
        self, name: str, share: Callable[[int, int], float], modulus: int
    ) -> None:
        totals = np.arange(4 * (modulus - 1) + 1)
        exact = np.array([modulus * share(int(total), modulus) for total in totals])
        tokens = np.asarray(COMBINATIONS[name](jnp.asarray(totals)[:, None], modulus))
        assert tokens.dtype == np.int32
        clear = np.abs(exact - np.round(exact)) > 1e-4  # at a step, float32 may fall either way
        assert clear.sum() >= len(totals) // 2
        assert tokens[clear].tolist() == np.floor(exact[clear]).astype(int).tolist()

    @pytest.mark.parametrize("name", COMBINATIONS)
    @pytest.mark.parametrize("modulus", [4, 8, 17])
    def test_tokens_stay_in_the_vocabulary(self, name: str, modulus: int) -> None:
        # sine_of_turn is exactly 1 at a quarter turn, which modulus 4 and 8 have
        dependencies = jnp.arange(4 * modulus)[:, None]
        tokens = np.asarray(COMBINATIONS[name](dependencies, modulus))
        assert tokens.min() >= 0
        assert tokens.max() == modulus - 1


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "parts"),
        [
            ({"task": "cott"}, ["task='cott'", "recursive, cot, semi_recursive"]),
            ({"j": 0, "seeds": [[1, 2, 3]]}, ["j=0", "at least 1"]),
            ({"k": 0, "seeds": [[1]]}, ["k=0", "at least 1"]),
            ({"modulus": 1}, ["modulus=1", "at least 2"]),
            ({"seeds": [[1, 2, 3]]}, ["(1, 3)", "[B, 4]"]),
            ({"seeds": [1, 2, 3, 4]}, ["(4,)", "[B, 4]"]),
            ({"length": 3}, ["length=3", "at least j+k=4"]),
        ],
    )
    def test_name_what_is_wrong_and_what_is_allowed(
        self, changes: dict[str, object], parts: list[str]
    ) -> None:
        arguments: dict[str, object] = {"task": "cot", "seeds": [[1, 2, 3, 4]], "length": 8}
        arguments |= changes
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the parts are checked below
            generate(
                arguments.pop("task"),
                arguments.pop("seeds"),
                arguments.pop("length"),
                **arguments,
            )
        assert [part for part in parts if part not in str(caught.value)] == []
