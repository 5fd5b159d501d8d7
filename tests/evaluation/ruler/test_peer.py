"""Beside NVIDIA/RULER's own generators and scorer, on the same words, texts, draws and tokens.

`RROPE_RULER` names a checkout of github NVIDIA/RULER. Its scripts are run as they are, except that
the packages that they import for words, sentences and tokenizers are replaced by stand-ins, and
that NumPy's five-digit numbers come from the same generator as everything else. Before every prompt
the generator gets the same state, so that theirs does not depend on how many it wrote before.
"""

import importlib
import importlib.util
import itertools
import json
import os
import random
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rrope_jax.evaluation.ruler import needles, scoring, variables
from rrope_jax.evaluation.ruler.questions_file import read_questions
from rrope_jax.evaluation.ruler.sample import Materials, Sample
from rrope_jax.evaluation.ruler.search import largest_size
from rrope_jax.evaluation.ruler.tasks import DATASETS, TASKS
from rrope_jax.evaluation.ruler.word_lists import WordLists
from tests.evaluation.ruler.materials import HOTPOTQA, SQUAD, count_words

CHECKOUT = os.environ.get("RROPE_RULER")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # of their scripts
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.skipif(CHECKOUT is None, reason="RROPE_RULER names no checkout of NVIDIA/RULER"),
]

SCRIPTS = {
    "niah": "niah",
    "vt": "variable_tracking",
    "cwe": "common_words_extraction",
    "fwe": "freq_words_extraction",
    "qa": "qa",
}
WORDS = WordLists()
SEED = 42
STATE = "a state of the generator"


def synthetic() -> Path:
    return Path(CHECKOUT or "") / "scripts" / "data" / "synthetic"


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What their scripts import: words, sentences, tokens, and a writer that is not called."""
    lists = {
        "nounlist.txt": list(WORDS.nouns),
        "adjectivelist.txt": list(WORDS.adjectives),
        "verblist.txt": list(WORDS.verbs),
    }
    tokens = types.SimpleNamespace(text_to_tokens=lambda text: [None] * count_words(text))
    modules = {
        "wonderwords": {
            "random_word": types.SimpleNamespace(_get_words_from_text_file=lists.__getitem__)
        },
        "nltk": {},
        "nltk.tokenize": {"sent_tokenize": needles.split_sentences},
        "tokenizer": {"select_tokenizer": lambda kind, path: tokens},
        "manifest_utils": {"write_manifest": None},
        "tqdm": {"tqdm": lambda each: each},
    }
    for name, attributes in modules.items():
        module = types.ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of their scripts, beside the files that they read."""
    folder = tmp_path_factory.mktemp("theirs") / "synthetic"
    (folder / "json").mkdir(parents=True)
    for script in (*SCRIPTS.values(), "constants"):
        (folder / f"{script}.py").write_text((synthetic() / f"{script}.py").read_text())
    (folder / "json" / "squad.json").write_text(json.dumps(SQUAD))
    (folder / "json" / "hotpotqa.json").write_text(json.dumps(HOTPOTQA))
    essay = " ".join(WORDS.sentences(SEED, 100_000))
    (folder / "json" / "PaulGrahamEssays.json").write_text(json.dumps({"text": essay}))
    (folder / "json" / "english_words.json").write_text(json.dumps(dict(enumerate(WORDS.pairs))))
    return folder


def theirs(
    name: str, context: int, folder: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> Any:
    """Their script for a task as a module, with its arguments as prepare.py gives them."""
    yaml = pytest.importorskip("yaml")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "constants", raising=False)
    constants = importlib.import_module("constants").TASKS
    row = yaml.safe_load((synthetic().parents[1] / "synthetic.yaml").read_text())[name]
    words = constants[row["task"]]
    whole = template.format(task_template=words["template"]) + words["answer_prefix"]
    arguments = {
        "save_dir": folder,
        "save_name": name,
        "tokenizer_path": "none",
        "max_seq_length": context,
        "tokens_to_generate": words["tokens_to_generate"],
        "num_samples": 1,
        "random_seed": SEED,
        "template": whole,
        **row["args"],
    }
    monkeypatch.setattr(
        sys, "argv", ["script", *(f"--{key}={value}" for key, value in arguments.items())]
    )
    spec = importlib.util.spec_from_file_location(
        f"theirs_{name}", folder / f"{SCRIPTS[name.split('_')[0]]}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.logger.disabled = True  # one of their messages does not fit its arguments
    write = module.generate_input_output

    def from_the_same_state(*args: Any, **kwargs: Any) -> Any:
        random.seed(STATE)
        return write(*args, **kwargs)

    module.generate_input_output = from_the_same_state
    if name == "vt":
        module.np = types.SimpleNamespace(
            random=types.SimpleNamespace(randint=random.randrange), **_numpy_of("round", "linspace")
        )
    return module


def _numpy_of(*names: str) -> dict[str, Any]:
    return {name: getattr(np, name) for name in names}


@pytest.fixture
def materials(tmp_path: Path) -> Materials:
    questions = {}
    for name, data in (("squad", SQUAD), ("hotpotqa", HOTPOTQA)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(data))
        questions[name] = read_questions(name, str(path))
    return Materials(
        words=WORDS,
        essay=WORDS.sentences(SEED, 100_000),
        questions=questions,
        template="{task}",
        seed=SEED,
        count_tokens=count_words,
    )


@pytest.mark.parametrize("template", ["{task}", "<|user|>\n{task}<|end|>\n<|assistant|>\n"])
@pytest.mark.parametrize("context", [2048, 4096, 16384])
@pytest.mark.parametrize("name", TASKS)
def test_prompts_and_sizes_are_theirs(
    name: str,
    context: int,
    template: str,
    materials: Materials,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    stand_ins: None,
) -> None:
    """Prompt, answers and length of the first sample, as their script would write them to disk."""
    object.__setattr__(materials, "template", template)
    their_template = template.replace("{task}", "{task_template}")
    module = theirs(name, context, folder, monkeypatch, their_template)
    task = TASKS[name]

    def ours(size: int) -> Sample:
        return task.write(materials, context, size, 0, random.Random(STATE))

    if name == "vt":
        (line,) = _variable_tracking(module, context, materials, monkeypatch)
    elif name == "fwe":
        (line,) = module.sys_kwext(1, context)
    elif name == "cwe":
        (line,) = module.sys_word_pair_random(1, context, "")
    else:
        (line,) = module.generate_samples(1, context, "")
    prompt = line["input"] + line["answer_prefix"]
    size = largest_size(
        task.sizes(materials, context, 0),
        lambda size: count_words(ours(size).prompt),
        context - task.max_tokens,
    )
    assert size is not None
    sample = ours(size)
    assert list(sample.answers) == list(line["outputs"])
    assert sample.prompt == prompt
    assert count_words(sample.prompt) + task.max_tokens == line["length"]


def _variable_tracking(
    module: Any, context: int, materials: Materials, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Their prompts after our solved example, whose own equality another test shows."""
    example = variables._example(materials, 4)
    words = example.split()
    icl = {"input": example.rpartition(" ".join(words[-5:]))[0][:-1], "outputs": words[-5:]}
    return module.sys_vartrack_w_noise_random(
        num_samples=1, max_seq_length=context, icl_example=icl, final_output=True
    )


def test_the_solved_example_of_variable_tracking_is_theirs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stand_ins: None
) -> None:
    module = theirs("vt", 4096, folder, monkeypatch, "{task_template}")
    for size in (5, 9, 20):
        text, answers = module.generate_input_output(size, 1, 4, is_icl=True)
        sample = variables.solved_example(4, size, random.Random(STATE))
        assert (sample.prompt, list(sample.answers)) == (text, answers)


def _scorer() -> Any:
    path = Path(CHECKOUT or "") / "scripts" / "eval" / "synthetic" / "constants.py"
    spec = importlib.util.spec_from_file_location("their_scorer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _cleaner() -> Any:
    """Their `postprocess_pred`, cut out of a script that imports NeMo."""
    source = (Path(CHECKOUT or "") / "scripts" / "eval" / "evaluate.py").read_text()
    (function,) = re.findall(r"^def postprocess_pred.*?(?=^def )", source, re.MULTILINE | re.DOTALL)
    space: dict[str, Any] = {"re": re}
    exec(function, space)
    return space["postprocess_pred"]


PIECES = ("12", "ABC", "abc", "x", "\x07", "\n", "  ", "é", "İ", "ß", "SS", "")


def _answers() -> Iterator[tuple[str, list[str]]]:
    """All answers of up to three pieces, each with drawn expectations."""
    draws = random.Random(0)
    words = [piece for piece in PIECES if piece.strip()]
    for parts in itertools.product(PIECES, repeat=3):
        yield "".join(parts), draws.sample(words, draws.randint(1, 4))


def test_scores_are_theirs_for_all_answers() -> None:
    clean, metrics = _cleaner(), _scorer()
    cases = list(_answers())
    assert len(cases) == len(PIECES) ** 3
    for answer, expected in cases:
        cleaned = clean(answer, {})
        assert scoring.cleaned(answer) == cleaned
        for kind in ("all", "part"):
            theirs = getattr(metrics, f"string_match_{kind}")([cleaned], [expected])
            assert scoring.score(kind, [answer], [expected]) == theirs
    for count in (2, 3, 7, 500):
        many = random.Random(count).sample(cases, count)
        answers, expected_lists = zip(*many, strict=True)
        for kind in ("all", "part"):
            theirs = getattr(metrics, f"string_match_{kind}")(
                [clean(answer, {}) for answer in answers], expected_lists
            )
            assert scoring.score(kind, answers, expected_lists) == theirs


def test_tasks_and_scorings_are_those_of_their_tables() -> None:
    yaml = pytest.importorskip("yaml")
    rows = yaml.safe_load((Path(CHECKOUT or "") / "scripts" / "synthetic.yaml").read_text())
    assert list(rows) == list(TASKS)
    for name, row in rows.items():
        metric = _scorer().TASKS[row["task"]]["metric_fn"].__name__
        assert metric == f"string_match_{TASKS[name].scoring}"
    assert {name: rows[name]["args"]["dataset"] for name in DATASETS} == dict(DATASETS)
