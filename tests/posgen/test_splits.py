"""Which seeds are in which split."""

import itertools

import jax
import numpy as np
import pytest

from rrope_jax.posgen import SPLITS, Sizes, Splits


def _sets(splits: Splits) -> list[set[tuple[int, ...]]]:
    return [{tuple(row) for row in np.asarray(seeds).tolist()} for seeds in splits]


class TestDisjoint:
    def test_no_seed_is_in_two_splits_or_twice_in_one(self) -> None:
        sizes = Sizes(300, 50, 70)
        splits = SPLITS["disjoint"](jax.random.key(0), sizes, modulus=5, seed_length=4)
        assert [seeds.shape for seeds in splits] == [(300, 4), (50, 4), (70, 4)]
        assert {seeds.dtype for seeds in splits} == {np.dtype(np.int32)}
        sets = _sets(splits)
        assert [len(rows) for rows in sets] == list(sizes)
        assert len(set.union(*sets)) == sum(sizes)

    def test_all_seeds_are_used_when_all_are_asked_for(self) -> None:
        splits = SPLITS["disjoint"](jax.random.key(3), Sizes(10, 9, 8), modulus=3, seed_length=3)
        assert set.union(*_sets(splits)) == set(itertools.product(range(3), repeat=3))

    def test_every_token_is_as_frequent_at_every_place(self) -> None:
        splits = SPLITS["disjoint"](jax.random.key(0), Sizes(2000, 1, 1), modulus=7, seed_length=4)
        for place in range(4):
            counts = np.bincount(np.asarray(splits.train)[:, place], minlength=7)
            # 2000 draws of one in seven: mean 286, standard deviation 16
            assert (abs(counts - 2000 / 7) < 5 * 16).all()

    def test_key_decides(self) -> None:
        sizes = Sizes(40, 10, 10)
        first, again, other = (
            SPLITS["disjoint"](jax.random.key(seed), sizes, modulus=5, seed_length=4)
            for seed in (0, 0, 1)
        )
        assert all((a == b).all() for a, b in zip(first, again, strict=True))
        assert not (first.train == other.train).all()

    @pytest.mark.parametrize(
        ("sizes", "modulus", "seed_length", "parts"),
        [
            (Sizes(80, 1, 1), 3, 4, ["need 82", "modulus=3", "4 tokens", "only 81", "fewer rows"]),
            # 17**8 does not even fit an int32
            (Sizes(8, 1, 1), 17, 8, ["modulus=17", "8 tokens", "6975757441", "smaller modulus"]),
        ],
    )
    def test_numbers_that_do_not_fit(
        self, sizes: Sizes, modulus: int, seed_length: int, parts: list[str]
    ) -> None:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the parts are checked below
            SPLITS["disjoint"](jax.random.key(0), sizes, modulus=modulus, seed_length=seed_length)
        assert [part for part in parts if part not in str(caught.value)] == []


class TestAuthors:
    def test_sorted_combinations_in_order(self) -> None:
        splits = SPLITS["authors"](jax.random.key(0), Sizes(4, 1, 1), modulus=4, seed_length=3)
        assert splits.train.tolist() == [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]

    def test_they_repeat_when_they_run_out(self) -> None:
        splits = SPLITS["authors"](jax.random.key(0), Sizes(9, 1, 1), modulus=4, seed_length=3)
        train = splits.train.tolist()
        assert train[4:8] == train[:4]
        assert train[8] == train[0]

    def test_validation_is_the_first_training_rows_and_test_follows(self) -> None:
        splits = SPLITS["authors"](jax.random.key(0), Sizes(20, 5, 6), modulus=7, seed_length=4)
        assert splits.validation.tolist() == splits.train[:5].tolist()
        assert splits.test.tolist() == splits.train[5:11].tolist()

    def test_at_the_paper_s_size_all_of_validation_and_test_was_trained_on(self) -> None:
        sizes = Sizes(10_000, 1_000, 1_000)
        train, validation, test = _sets(
            SPLITS["authors"](jax.random.key(0), sizes, modulus=17, seed_length=4)
        )
        assert len(train) == 2380  # 17 choose 4
        assert validation | test <= train

    def test_seed_longer_than_the_vocabulary(self) -> None:
        with pytest.raises(ValueError, match=r"modulus=3 .* 4 of a seed; use splits='disjoint'"):
            SPLITS["authors"](jax.random.key(0), Sizes(4, 1, 1), modulus=3, seed_length=4)
