"""Prompts against ones written by hand, and how they fill a context."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrope_jax.data.tokenizers import Tokenizer, load_tokenizer
from rrope_jax.evaluation.ruler.needles import Needles, split_sentences
from rrope_jax.evaluation.ruler.prompts import Prompts
from rrope_jax.evaluation.ruler.questions_file import read_questions
from rrope_jax.evaluation.ruler.sample import Materials, Sizes
from rrope_jax.evaluation.ruler.search import largest_size
from rrope_jax.evaluation.ruler.setting import RulerSetting
from rrope_jax.evaluation.ruler.tasks import DATASETS, GENERATED, TASKS
from rrope_jax.evaluation.ruler.word_lists import WordLists, read_words
from tests.evaluation.ruler.materials import HOTPOTQA, SQUAD, count_words


class Draws(random.Random):
    """Draws that are given: the first element, the first places, the smallest number."""

    def choice(self, seq: Any) -> Any:
        return seq[0]

    def choices(self, population: Any, *args: Any, k: int = 1, **kwargs: Any) -> Any:
        # a new word each time, in the order of the alphabet
        self.drawn = getattr(self, "drawn", -1) + 1
        return [population[self.drawn % len(population)]] * k

    def sample(self, population: Any, k: int, **kwargs: Any) -> Any:
        return list(population)[:k]

    def randint(self, a: int, b: int) -> int:
        self.number = getattr(self, "number", a - 1) + 1
        return self.number

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return start

    def getrandbits(self, k: int) -> int:
        return 2**k - 1


def materials(**fields: Any) -> Materials:
    """Few words, which no shuffle can hide; a shuffle reverses."""

    class Reversing(Materials):
        def shuffle(self, entries: list[str]) -> None:
            entries.reverse()

    defaults: dict[str, Any] = {
        "words": WordLists(("mill", "river"), ("old",), ("run",)),
        "essay": ("One", "is", "first.", "Two", "is", "next.", "Three", "ends", "it."),
        "questions": {},
        "template": "{task}",
        "seed": 0,
        "count_tokens": count_words,
    }
    return Reversing(**defaults | fields)


NOISE = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
)


def test_a_needle_in_noise() -> None:
    sample = TASKS["niah_single_1"].write(materials(), 4096, 2, 0, Draws())
    assert sample.prompt == (
        "A special magic number is hidden within the following text. Make sure to memorize it. I "
        "will quiz you about the number afterwards.\n"
        "One of the special magic numbers for old-mill is: 1000000.\n"
        f"{NOISE}{NOISE}"
        "What is the special magic number for old-mill mentioned in the provided text? The special "
        "magic number for old-mill mentioned in the provided text is"
    )
    assert sample.answers == ("1000000",)
    assert sample.written == " 1000000"


def test_four_values_in_an_essay() -> None:
    """Depths 0, 3, 5 and 8 percent of three sentences are all the beginning."""
    sample = TASKS["niah_multivalue"].write(materials(), 4096, 9, 0, Draws())
    values = ("1000000", "1000001", "1000002", "1000003")
    needles = [f"One of the special magic numbers for old-mill is: {value}." for value in values]
    assert sample.prompt == (
        "Some special magic numbers are hidden within the following text. Make sure to memorize "
        "it. I will quiz you about the numbers afterwards.\n"
        f" {needles[3]}  {needles[2]}  {needles[1]}  {needles[0]} "
        "One is first. Two is next. Three ends it.\n"
        "What are all the special magic numbers for old-mill mentioned in the provided text? The "
        "special magic numbers for old-mill mentioned in the provided text are"
    )
    assert sample.answers == values


def test_a_uuid_among_uuids() -> None:
    class Counting(Draws):
        def getrandbits(self, k: int) -> int:
            self.bits = getattr(self, "bits", 0) + 1
            return self.bits

    sample = TASKS["niah_multikey_3"].write(materials(), 4096, 1, 0, Counting())
    uuids = [f"00000000-0000-4000-8000-00000000000{i}" for i in (1, 2, 3, 4)]
    lines = sample.prompt.split("\n")
    assert lines[1:3] == [
        f"One of the special magic uuids for {uuids[0]} is: {uuids[1]}.",
        f"One of the special magic uuids for {uuids[2]} is: {uuids[3]}.",
    ]
    assert sample.answers == (uuids[1],)
    assert lines[3].startswith(f"What is the special magic uuid for {uuids[0]} mentioned")


def test_four_queries_are_joined_in_words() -> None:
    words = WordLists(("a", "b", "c", "d", "e"), ("old",), ("run",))
    task = TASKS["niah_multiquery"]
    sample = task.write(materials(words=words), 4096, 9, 0, random.Random(3))
    asked = sample.prompt.rpartition("numbers for ")[2].removesuffix(
        " mentioned in the provided text are"
    )
    keys = asked.replace(", and ", ", ").split(", ")
    assert asked.count(", and ") == 1
    assert len(set(keys)) == 4
    for key, value in zip(keys, sample.answers, strict=True):
        assert f"One of the special magic numbers for {key} is: {value}." in sample.prompt


@given(st.sampled_from(["niah_multikey_1", "niah_multikey_2"]), st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_no_two_values_have_the_key_that_is_asked_for(name: str, seed: int) -> None:
    words = WordLists(tuple("abcdefgh"), ("old",), ("run",))
    sample = TASKS[name].write(materials(words=words), 4096, 30, 0, random.Random(seed))
    key = sample.prompt.rpartition("number for ")[2].split()[0]
    assert sample.prompt.count(f"numbers for {key} is: ") == 1
    assert f"numbers for {key} is: {sample.answers[0]}." in sample.prompt


def test_a_chain_of_variables() -> None:
    task = dataclasses.replace(TASKS["vt"], hops=2)  # type: ignore[type-var]
    sample = task.write(materials(count_tokens=lambda text: 10**6), 4096, 3, 0, Draws())

    def text(names: list[str], value: str, noise: int) -> str:
        return (
            "Memorize and track the chain(s) of variable assignment hidden in the following text."
            f"\n\nVAR {names[0]} = {value}\n{NOISE}VAR {names[1]} = VAR {names[0]} \n{NOISE}"
            f"VAR {names[2]} = VAR {names[1]} \n{NOISE * (noise - 2)}"
            f"Question: Find all variables that are assigned the value {value} in the text above. "
            "Answer: According to the chain(s) of variable assignment in the text above, 3 "
            f"variables are assigned the value {value}, they are: "
        )

    names = ["AAAAA", "BBBBB", "CCCCC"]
    example, _, asked = sample.prompt.partition("\n\nMemorize")
    assert f"Memorize{asked}" == text(names, "10000", 3)
    assert sample.answers == tuple(names)
    # the solved example has names of three letters and the least number of noise lines
    shown = example.split()[-3:]
    assert [len(name) for name in shown] == [3, 3, 3]
    assert example.count(NOISE) == 5
    dull = f"{text(shown, '10000', 2)} {' '.join(shown)}"
    assert example.replace(NOISE, "") == dull.replace(NOISE, "")


def test_common_words() -> None:
    words = WordLists(tuple(f"n{i:02}" for i in range(40)), (), ())
    plenty = materials(words=words)
    short = TASKS["cwe"].write(plenty, 2048, 11, 0, Draws())
    question = (
        "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words "
        "that appear most often in the list are:"
    )
    begin = (
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.\n"
    )
    example, asked, end = short.prompt.split(question)
    assert end == ""
    solved, _, listed = asked.partition(f"\n{begin}")
    assert solved == " " + " ".join(f"{i}. {word}" for i, word in enumerate(short.answers, 1))
    assert asked.startswith(short.written)
    # reversed: the one other word first, then six times the ten common ones
    entries = listed.split()[1::2]
    other, *common = entries
    assert common == list(reversed(short.answers)) * 6
    assert other not in short.answers
    assert listed.split()[::2] == [f"{i}." for i in range(1, 62)]
    assert len(example.removeprefix(begin).split()) == 2 * (10 * 3 + 10)
    long = TASKS["cwe"].write(plenty, 4096, 11, 0, Draws())
    _, asked, _ = long.prompt.split(question)
    entries = asked.partition(f"\n{begin}")[2].split()[1::2]
    assert [entries.count(word) for word in long.answers] == [30] * 10
    assert len(entries) == 30 * 10 + 3


def test_frequent_words() -> None:
    """1000 words: int(1000 / (k^2 * 1.6449)) of the k-th, and the first is dots."""
    sample = TASKS["fwe"].write(materials(), 300, 1000, 0, Draws())
    begin = (
        "Read the following coded text and track the frequency of each coded word. Find the three "
        "most frequently appeared coded words. "
    )
    end = (
        "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
        "three most frequently appeared words in the above coded text? Answer: According to the "
        "coded text above, the three most frequently appeared words are:"
    )
    text = sample.prompt.removeprefix(begin).removesuffix(end)
    # five different words, aaaaaa to eeeeee, reversed by the shuffle
    assert text.split() == [
        *["aaaaaa"] * 24,
        *["bbbbbb"] * 37,
        *["cccccc"] * 67,
        *["dddddd"] * 151,
        *["..."] * 607,
    ]
    assert sample.answers == ("dddddd", "cccccc", "bbbbbb")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    (folder / "squad.json").write_text(json.dumps(SQUAD))
    (folder / "hotpotqa.json").write_text(json.dumps(HOTPOTQA))
    return folder


def test_a_question_of_squad_brings_its_article_first(data: Path) -> None:
    questions = read_questions("squad", str(data / "squad.json"))
    assert len(questions.questions) == len(questions.documents) == 48  # impossible ones are out
    shown = materials(questions={"squad": questions})
    sample = TASKS["qa_1"].write(shown, 4096, 6, 0, Draws())
    parts = sample.prompt.split("\n\n")
    instruction = (
        "Answer the question based on the given documents. Only give me the answer and do not "
        "output any other words."
    )
    assert parts[:2] == [instruction, "The following are given documents."]
    assert parts[-2:] == [instruction, "Question: When was the mill of part 0 built? Answer:"]
    documents = parts[2:-2]
    assert [each.split("\n")[0] for each in documents] == [f"Document {i}:" for i in range(1, 7)]
    assert all("The mill of part" in each for each in documents)
    assert "of part 0 was built in 1700" in documents[-1]
    assert sample.answers == ("1700", "in 1700")
    more = TASKS["qa_1"].write(shown, 4096, 9, 0, Draws())
    assert more.prompt.count("The mill of part") == 6
    everything = TASKS["qa_1"].write(shown, 4096, 50, 0, Draws())
    assert everything.prompt.count("Document ") == 50  # two of 48 twice, as in RULER


def test_a_question_of_hotpotqa_keeps_its_documents(data: Path) -> None:
    questions = read_questions("hotpotqa", str(data / "hotpotqa.json"))
    shown = materials(questions={"hotpotqa": questions})
    sample = TASKS["qa_2"].write(shown, 4096, 5, 1, Draws())
    assert all(f"river {part}\nThe river has {part} doors." in sample.prompt for part in range(4))
    assert sample.answers == ("yes",)
    assert sample.prompt.endswith("Question: Is the river older than the mill? Answer:")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"squad='.*' is not in the JSON format of squad"),
        ("[]", "give SQuAD's dev-v2.0.json"),
        ('{"data": []}', "has no questions"),
    ],
)
def test_a_wrong_question_file(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        read_questions("squad", str(tmp_path / "data.json"))


SQUAD_QUESTION = {"question": "Who?", "answers": [{"text": "he"}], "is_impossible": False}
HOTPOTQA_ENTRY = {"question": "Who?", "answer": "he", "context": [["Title", ["A sentence."]]]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"question": None}, r"data\[0\].paragraphs\[0\].qas\[0\].question must be text, not None"),
        ({"question": ""}, r"qas\[0\].question must be text, not ''"),
        ({"answers": [{"text": 5}]}, r"qas\[0\].answers\[0\].text must be text, not 5"),
        ({"answers": []}, "or one without an answer"),
        ({"answers": "he"}, "TypeError"),
        ({"is_impossible": "no"}, r"qas\[0\].is_impossible must be true or false"),
        ({"context": 5}, r"data\[0\].paragraphs\[0\].context must be text, not 5"),
    ],
)
def test_a_wrong_entry_of_squad(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    context = changes.get("context", "Of him.")
    question = SQUAD_QUESTION | {k: v for k, v in changes.items() if k != "context"}
    paragraphs = [{"context": context, "qas": [question]}]
    (tmp_path / "data.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    with pytest.raises(ValueError, match=said):
        read_questions("squad", str(tmp_path / "data.json"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"question": 7}, r"\[1\].question must be text, not 7"),
        ({"answer": None}, r"\[1\].answer must be text, not None"),
        ({"answer": ""}, "or one without an answer"),
        ({"context": []}, r"\[1\].context must be a list of \[\"title\""),
        ({"context": [["Title", "A sentence."]]}, r"\[1\].context must be a list"),
        ({"context": {"title": ["A"], "sentences": [["B."]]}}, r"\[1\].context must be a list"),
        ({"context": [["Title", ["A."], 0]]}, r"\[1\].context must be a list"),
    ],
)
def test_a_wrong_entry_of_hotpotqa(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps([HOTPOTQA_ENTRY, HOTPOTQA_ENTRY | changes]))
    with pytest.raises(ValueError, match=said):
        read_questions("hotpotqa", str(tmp_path / "data.json"))


def test_the_beginning_of_the_answer_follows_the_chat_template() -> None:
    prompt = materials(template="<user>{task}<model>").prompt("Do {it}.", " It is")
    assert prompt == "<user>Do {it}.<model> It is"


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One is. Two is! Is three? Yes.", ["One is.", "Two is!", "Is three?", "Yes."]),
        ('He said "No." Then he left.', ['He said "No."', "Then he left."]),
        ("About 3.5 m, e.g. here.", ["About 3.5 m, e.g. here."]),
        ("  one", ["one"]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@given(
    least=st.integers(1, 30),
    shrink=st.integers(1, 40),
    unit=st.integers(1, 7),
    fixed=st.integers(0, 50),
    each=st.integers(1, 9),
    room=st.integers(1, 3000),
)
def test_the_largest_size_that_fits(
    least: int, shrink: int, unit: int, fixed: int, each: int, room: int
) -> None:
    def tokens_of(size: int) -> int:
        return fixed + each * size

    found = largest_size(Sizes(least, shrink, unit), tokens_of, room)
    if tokens_of(least) > room:
        assert found is None
    else:
        assert found is not None
        assert (found - least) % unit == 0
        assert tokens_of(found) <= room < tokens_of(found + unit)


# A byte is a token, so that the least prompts of some tasks take thousands.
BYTES = RulerSetting(
    tasks=("niah_single_1", "niah_single_2", "niah_multikey_3", "vt", "fwe"),
    contexts=(3000, 5000),
    samples=3,
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("bytes")


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> Prompts:
    return Prompts(BYTES, tokenizer, bos=False)


@pytest.mark.parametrize("context", BYTES.contexts)
@pytest.mark.parametrize("name", BYTES.tasks)
def test_the_first_prompt_fills_the_context_and_none_exceeds_it(
    name: str, context: int, prompts: Prompts, tokenizer: Tokenizer
) -> None:
    room = context - TASKS[name].max_tokens
    step = {"niah_single_2": 12, "niah_multikey_3": 150, "fwe": room // 32 * 7}.get(name, 100)
    first = prompts.write(name, context, 0)
    assert room - step < len(first.tokens) <= room
    assert tokenizer.decode(first.tokens) == first.sample.prompt
    for index in range(1, BYTES.samples):
        assert len(prompts.write(name, context, index).tokens) <= room


def test_a_prompt_depends_on_its_cell_alone(prompts: Prompts, tokenizer: Tokenizer) -> None:
    fewer = dataclasses.replace(BYTES, tasks=("vt", "niah_single_1"), contexts=(5000,), samples=2)
    again = Prompts(fewer, tokenizer, bos=False)
    for name in fewer.tasks:
        assert again.write(name, 5000, 1) == prompts.write(name, 5000, 1)
        assert again.depends_on(name, 5000, 1) == prompts.depends_on(name, 5000, 1)
    other = Prompts(dataclasses.replace(fewer, seed=1), tokenizer, bos=False)
    assert other.write("vt", 5000, 1).sample.answers != prompts.write("vt", 5000, 1).sample.answers
    written = {prompts.write("niah_single_1", 5000, i).sample.answers for i in range(3)}
    assert len(written) == 3


def test_other_materials_make_other_units(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "text.txt").write_text("It rains. It pours. " * 500)
    setting = dataclasses.replace(BYTES, tasks=("niah_single_2",), contexts=(3000,), samples=1)
    of_text = dataclasses.replace(setting, text=str(tmp_path / "text.txt"))
    chat = dataclasses.replace(setting, template="chatml")
    seen = {
        str(Prompts(each, tokenizer, bos=False).depends_on("niah_single_2", 3000, 0))
        for each in (setting, of_text, chat)
    }
    assert len(seen) == 3
    prompt = Prompts(of_text, tokenizer, bos=False).write("niah_single_2", 3000, 0).sample.prompt
    assert "It rains. It pours." in prompt


def test_a_context_that_is_too_short(tokenizer: Tokenizer) -> None:
    setting = RulerSetting(tasks=("niah_single_1",), contexts=(300,), samples=1)
    with pytest.raises(ValueError, match="300 tokens are too few for niah_single_1"):
        Prompts(setting, tokenizer, bos=False)


def test_more_samples_than_questions(data: Path, tokenizer: Tokenizer) -> None:
    setting = RulerSetting(
        tasks=("qa_2",), contexts=(3000,), samples=9, hotpotqa=str(data / "hotpotqa.json")
    )
    with pytest.raises(ValueError, match="9 samples take as many questions, but the file has 8"):
        Prompts(setting, tokenizer, bos=False)


def test_words_of_a_folder(tmp_path: Path) -> None:
    for name in ("nounlist.txt", "adjectivelist.txt", "verblist.txt"):
        (tmp_path / name).write_text(f"{name[0]}one\n\n{name[0]}two\n")
    words = read_words(str(tmp_path))
    assert words.pairs == ["aone-none", "aone-ntwo", "atwo-none", "atwo-ntwo"]
    assert sorted(words.singles(0)) == ["aone", "atwo", "none", "ntwo", "vone", "vtwo"]
    assert words.many == words.pairs
    (tmp_path / "english_words.json").write_text('{"0": "x", "1": "y"}')
    assert read_words(str(tmp_path)).many == ["x", "y"]
    (tmp_path / "verblist.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"verblist\.txt has no words"):
        read_words(str(tmp_path))
    with pytest.raises(ValueError, match="or None for the words built in"):
        read_words(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tasks": ("niah",)}, "tasks: 'niah' is none of niah_single_1, "),
        ({"tasks": ()}, "must name at least one"),
        ({"contexts": (1, 1)}, "none twice"),
        ({"samples": 0}, "samples=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"template": "chat"}, "must contain {task} once, or be one of base, chatml"),
        ({"tasks": ("qa_1",)}, "qa_1 reads questions from a file; give squad=PATH"),
    ],
)
def test_wrong_settings(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RulerSetting(**fields)


def test_the_tasks_are_rulers_thirteen() -> None:
    assert len(TASKS) == 13
    assert len(GENERATED) == 11
    assert dict(DATASETS) == {"qa_1": "squad", "qa_2": "hotpotqa"}
    assert sum(isinstance(task, Needles) for task in TASKS.values()) == 8
