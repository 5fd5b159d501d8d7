"""Order of tasks and names of levels in tables and plots."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from rrope_jax.algorithmic.tasks import TASKS
from rrope_jax.reporting.methods import in_order

LEVEL_LABELS: Mapping[str, str] = MappingProxyType(
    {
        "regular": "regular",
        "context_free": "context-free",
        "context_sensitive": "context-sensitive",
    }
)


def task_name(task: str) -> str:
    """Returns a task's name in tables and panel titles."""
    return task.replace("_", " ")


def level_label(task: str) -> str:
    """Returns the name of a task's class in the Chomsky hierarchy."""
    return LEVEL_LABELS[TASKS[task].level]


def order_algorithmic_tasks(tasks: Iterable[str]) -> tuple[str, ...]:
    """Sorts distinct tasks by level, as in `TASKS`."""
    return in_order(tasks, TASKS)


def guessing(task: str) -> float:
    """Returns the accuracy of a uniform guess among the answer tokens, in [0, 1]."""
    return 1 / len(TASKS[task].answer)
