"""The 13 tasks of RULER, by its names."""

from collections.abc import Mapping

from rrope_jax.evaluation.ruler.common_words import CommonWords
from rrope_jax.evaluation.ruler.frequent_words import FrequentWords
from rrope_jax.evaluation.ruler.needles import Needles
from rrope_jax.evaluation.ruler.questions import DocumentQuestions
from rrope_jax.evaluation.ruler.sample import Task
from rrope_jax.evaluation.ruler.variables import Variables

TASKS: Mapping[str, Task] = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles("essay"),
    "niah_single_3": Needles("essay", value="uuids"),
    "niah_multikey_1": Needles("essay", keys=4),
    "niah_multikey_2": Needles("needle"),
    "niah_multikey_3": Needles("needle", key="uuids", value="uuids"),
    "niah_multivalue": Needles("essay", values=4),
    "niah_multiquery": Needles("essay", queries=4),
    "vt": Variables(hops=4),
    "cwe": CommonWords(),
    "fwe": FrequentWords(),
    "qa_1": DocumentQuestions("squad"),
    "qa_2": DocumentQuestions("hotpotqa"),
}
"""Name -> task (scripts/synthetic.yaml of RULER)."""

DATASETS: Mapping[str, str] = {
    name: task.dataset for name, task in TASKS.items() if isinstance(task, DocumentQuestions)
}
"""Name of a task that reads a file -> the data set."""

GENERATED: tuple[str, ...] = tuple(name for name in TASKS if name not in DATASETS)
"""Names of the tasks that need no file."""
