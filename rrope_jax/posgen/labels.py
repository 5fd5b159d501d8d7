"""Order and names of tasks and protocols in tables and plots."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from rrope_jax.reporting.methods import in_order

TASK_LABELS: Mapping[str, str] = MappingProxyType(
    {"recursive": "Recursive", "cot": "Chain-of-Thought", "semi_recursive": "Semi-recursive"}
)

PROTOCOL_LABELS: Mapping[str, str] = MappingProxyType(
    {
        "scaled_training": "Scaled in training and test",
        "scaled_at_test": "Scaled at test only",
    }
)

PROTOCOL_NOTES: Mapping[str, str] = MappingProxyType(
    {
        "scaled_training": "Every method is trained with the tables that it is tested with "
        "(the protocol in the paper's text).",
        "scaled_at_test": "Models are trained with unscaled tables and the scaling is switched on "
        "for the test (the protocol in the authors' code), so one training can serve several "
        "rows: the column *trained as* says which.",
    }
)


def task_label(task: str) -> str:
    """Returns a task's name in tables and panel titles."""
    return TASK_LABELS.get(task, task)


def protocol_label(protocol: str) -> str:
    """Returns a protocol's name in headings."""
    return PROTOCOL_LABELS.get(protocol, protocol)


def order_tasks(tasks: Iterable[str]) -> tuple[str, ...]:
    """Sorts distinct tasks in report order, that of the paper's Table 1."""
    return in_order(tasks, TASK_LABELS)


def order_protocols(protocols: Iterable[str]) -> tuple[str, ...]:
    """Sorts distinct protocols in report order."""
    return in_order(protocols, PROTOCOL_LABELS)
