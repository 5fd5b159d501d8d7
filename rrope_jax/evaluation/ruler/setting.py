"""The fields of `config.eval.ruler`."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from rrope_jax.evaluation.ruler.sample import TASK
from rrope_jax.evaluation.ruler.tasks import DATASETS, GENERATED, TASKS

TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "base": TASK,
        "chatml": f"<|im_start|>user\n{TASK}<|im_end|>\n<|im_start|>assistant\n",
        "gemma": f"<start_of_turn>user\n{TASK}<end_of_turn>\n<start_of_turn>model\n",
        "meta-chat": f"[INST] {TASK} [/INST]",
        "meta-llama3": (
            f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{TASK}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        "Phi3": f"<|user|>\n{TASK}<|end|>\n<|assistant|>\n",
    }
)
"""Name -> chat template; those that RULER has, too, under its names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RulerSetting:
    """The fields of `config.eval.ruler`.

    Attributes:
      enabled: whether to run RULER.
      tasks: keys of `TASKS`.
      contexts: lengths of prompt and answer together, in tokens of the model.
      samples: number of prompts per task and context (RULER takes 500).
      seed: seed of the prompts. A prompt depends only on the seed, the task, the context and its
        number, so all models with the same tokenizer get the same prompts.
      template: a key of `TEMPLATES`, or a chat template that contains `{task}`; the beginning of
        the answer follows it.
      text: the text that needles are hidden in, a source as `data.source` (RULER: Paul Graham's
        essays); None for random sentences.
      words: a folder with lists of words, as `word_lists.read_words` reads them (RULER: those of
        the package `wonderwords`); None for the lists built in.
      squad: path of SQuAD's JSON file, for `qa_1`.
      hotpotqa: path of HotpotQA's JSON file, for `qa_2`.
      chunk: tokens of a prompt that go through the model at a time.
    """

    enabled: bool = True
    tasks: tuple[str, ...] = GENERATED
    contexts: tuple[int, ...] = (4096, 8192, 16384, 32768)
    samples: int = 20
    seed: int = 42
    template: str = "base"
    text: str | None = None
    words: str | None = None
    squad: str | None = None
    hotpotqa: str | None = None
    chunk: int = 2048

    def __post_init__(self) -> None:
        for name in ("tasks", "contexts"):
            entries = getattr(self, name)
            if not entries or len(set(entries)) < len(entries):
                raise ValueError(f"{name}={entries!r} must name at least one, and none twice")
        if unknown := [name for name in self.tasks if name not in TASKS]:
            raise ValueError(f"tasks: {unknown[0]!r} is none of {', '.join(TASKS)}")
        for name in ("samples", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be at least 0")
        if self.template not in TEMPLATES and self.template.count(TASK) != 1:
            raise ValueError(
                f"template={self.template!r} must contain {TASK} once, or be one of "
                f"{', '.join(TEMPLATES)}"
            )
        for name in self.tasks:
            dataset = DATASETS.get(name)
            if dataset is not None and getattr(self, dataset) is None:
                raise ValueError(
                    f"tasks: {name} reads questions from a file; give {dataset}=PATH, or leave "
                    f"{name} out"
                )

    @property
    def chat_template(self) -> str:
        """The chat template itself."""
        return TEMPLATES.get(self.template, self.template)
