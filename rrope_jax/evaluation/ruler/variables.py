"""Variable tracking: all names of one value along a chain of assignments, hidden in noise."""

import dataclasses
import functools
import itertools
import random
import string

from rrope_jax.evaluation.ruler.needles import NOISE
from rrope_jax.evaluation.ruler.sample import SHORT_CONTEXT, Materials, Sample, Sizes, Task, word
from rrope_jax.evaluation.ruler.search import largest_size

_TASK = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\nQuestion: Find all variables that are assigned the value {query} in the text above."
)
_ANSWER = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} "
    "variables are assigned the value {query}, they are: "
)
_NAME_LETTERS = 5
_EXAMPLE_NAME_LETTERS = 3
_EXAMPLE_VALUE = "12345"
_EXAMPLE_TOKENS = 500
_EXAMPLE_SIZES = Sizes(least=5, shrink=5)


@dataclasses.dataclass(frozen=True)
class Variables(Task):
    """`vt`: name the variables that got a value directly or through others.

    The prompt begins with a solved example. For example, for two hops:

        Memorize and track the chain(s) of variable assignment hidden in the following text.

        VAR QWERT = 63521
        The grass is green. The sky is blue. [...]
        VAR ASDFG = VAR QWERT
        VAR ZXCVB = VAR ASDFG
        Question: Find all variables that are assigned the value 63521 in the text above. Answer:
        According to the chain(s) of variable assignment in the text above, 3 variables are assigned
        the value 63521, they are:

    Attributes:
      hops: number of assignments from another variable.
    """

    hops: int = 4
    max_tokens: int = 30

    def sizes(self, materials: Materials, context: int, index: int) -> Sizes:
        """Numbers of noise lines."""
        del materials, index
        return Sizes(least=self.hops + 1, shrink=5 if context < SHORT_CONTEXT else 10)

    def write(
        self, materials: Materials, context: int, size: int, index: int, draws: random.Random
    ) -> Sample:
        """Writes a prompt; see `Task.write`."""
        del context, index
        names = _names(draws, self.hops + 1, _NAME_LETTERS)
        value = five_digits(draws)
        task, answer_prefix = _question(names, value, size, draws)
        example = self._renamed(_example(materials, self.hops), draws)
        prompt = materials.prompt(f"{example}\n{task}", answer_prefix)
        return Sample(prompt, tuple(names), " " + " ".join(names))

    def _renamed(self, example: str, draws: random.Random) -> str:
        """The example with other names and another value, so that no two prompts share them."""
        for name in example.split()[-self.hops - 1 :]:
            example = example.replace(name, word(draws, string.ascii_uppercase, len(name)))
        return example.replace(_EXAMPLE_VALUE, five_digits(draws))


def five_digits(draws: random.Random) -> str:
    """A value from 10000 to 99998 (RULER draws it by NumPy, whose upper bound is excluded)."""
    return str(draws.randrange(10_000, 99_999))


def _names(draws: random.Random, count: int, letters: int) -> list[str]:
    names = [word(draws, string.ascii_uppercase, letters) for _ in range(count)]
    while len(set(names)) < count:
        names.append(word(draws, string.ascii_uppercase, letters))
    return list(dict.fromkeys(names))


def _question(names: list[str], value: str, size: int, draws: random.Random) -> tuple[str, str]:
    """The task and the beginning of its answer."""
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {to} = VAR {name} " for name, to in itertools.pairwise(names)]
    lines = [NOISE] * size
    for shift, place in enumerate(sorted(draws.sample(range(size), len(chain)))):
        lines.insert(place + shift, chain[shift])
    return (
        _TASK.format(context="\n".join(lines), query=value),
        _ANSWER.format(count=len(names), query=value),
    )


@functools.lru_cache(maxsize=8)
def _example(materials: Materials, hops: int) -> str:
    """The solved example before every prompt, of at most `_EXAMPLE_TOKENS` tokens."""

    def written(size: int) -> Sample:
        return solved_example(hops, size, random.Random(f"{materials.seed} example"))

    size = largest_size(
        _EXAMPLE_SIZES,
        lambda size: materials.count_tokens(written(size).prompt),
        _EXAMPLE_TOKENS,
    )
    sample = written(size or _EXAMPLE_SIZES.least)
    return f"{sample.prompt}{sample.written}\n"


def solved_example(hops: int, size: int, draws: random.Random) -> Sample:
    """A small prompt without a chat template, with names of three letters."""
    names = _names(draws, hops + 1, _EXAMPLE_NAME_LETTERS)
    task, answer_prefix = _question(names, _EXAMPLE_VALUE, size, draws)
    return Sample(task + answer_prefix, tuple(names), " " + " ".join(names))
