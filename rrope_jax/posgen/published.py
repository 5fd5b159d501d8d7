"""Published out-of-distribution accuracies on PosGen: arXiv 2403.00071v2, Table 1."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rrope_jax.model.presets import PRESETS
from rrope_jax.posgen.config import PosgenTrainConfig, TaskConfig
from rrope_jax.posgen.training import PosgenProgram
from rrope_jax.rope.positions import PositionSampling


@dataclasses.dataclass(frozen=True)
class PublishedAccuracy:
    """An entry of Table 1: five seeds, m = 17, j = 1, k = 3, trained at 64 tokens, tested at 256.

    Attributes:
      mean: Mean out-of-distribution accuracy, in percent.
      variance: The number after the plus-minus sign. The paper calls it the variance over five
        seeds and prints it in percent.
    """

    mean: float
    variance: float

    @property
    def std(self) -> float:
        """Standard deviation in percentage points, given our interpretation of `variance`.

        The paper does not define the unit. We take `variance` as that of the accuracy as a
        fraction, times 100: 0.43 is a variance of 0.0043 and thus a standard deviation of
        sqrt(0.0043) = 0.066, or 6.6 points. In squared percentage points, it would be 0.66 points.
        """
        return 100 * math.sqrt(self.variance / 100)


# The largest variance printed as 0.00 is 0.005, a standard deviation of 0.7 points.
ZERO_VARIANCE_STD_BOUND = PublishedAccuracy(mean=0.0, variance=0.005).std

TABLE_1: Mapping[tuple[str, str], PublishedAccuracy] = MappingProxyType(
    {
        ("recursive", "rope"): PublishedAccuracy(65.29, 0.43),
        ("recursive", "resonance_rope"): PublishedAccuracy(62.64, 0.15),
        ("recursive", "yarn"): PublishedAccuracy(95.93, 0.04),
        ("recursive", "resonance_yarn"): PublishedAccuracy(98.30, 0.00),
        ("cot", "rope"): PublishedAccuracy(69.56, 0.33),
        ("cot", "resonance_rope"): PublishedAccuracy(75.25, 0.10),
        ("cot", "yarn"): PublishedAccuracy(98.71, 0.00),
        ("cot", "resonance_yarn"): PublishedAccuracy(99.58, 0.00),
        ("semi_recursive", "rope"): PublishedAccuracy(17.96, 0.03),
        ("semi_recursive", "resonance_rope"): PublishedAccuracy(29.78, 0.07),
        ("semi_recursive", "yarn"): PublishedAccuracy(33.70, 0.04),
        ("semi_recursive", "resonance_yarn"): PublishedAccuracy(48.46, 0.03),
    }
)

_PAPER_ROPE = {
    "theta": 10_000.0,
    "factor": 4.0,
    "original_context": 64,
    "beta_fast": 2.0,
    "beta_slow": 1.0,
}
_PAPER_ROPE_AT_TEST = {"factor": 257 / 65, "original_context": 257}


def is_paper(
    program: PosgenProgram, rope: Mapping[str, Any], rope_at_test: Mapping[str, Any]
) -> bool:
    """Whether data, model, embedding and optimization are those of the paper.

    The attention implementation, activation dtype, matmul precision and number of validations do
    not matter here; the report shows them.

    Args:
      program: The setting.
      rope: Fields of RopeSpec for all methods.
      rope_at_test: Fields that replace those of `rope` under the protocol `scaled_at_test`.
    """
    paper = dataclasses.replace(PRESETS["posgen_paper"].model, vocab_size=program.task.vocab_size)
    return (
        program.task == TaskConfig()
        and rope == _PAPER_ROPE
        and rope_at_test == _PAPER_ROPE_AT_TEST
        and dataclasses.replace(
            program.model, compute_dtype=paper.compute_dtype, attention=paper.attention
        )
        == paper
        and dataclasses.replace(
            program.train, steps_per_call=None, validate_every=PosgenTrainConfig.validate_every
        )
        == PosgenTrainConfig()
        and program.positions == PositionSampling()
    )
