"""PosGen, the paper's benchmark of position generalization, and its ablation.

The data (`tasks`, `splits`) and the report do not depend on Flax. Import `training` and `ablation`,
which do, explicitly.
"""

from rrope_jax.posgen.splits import SPLITS as SPLITS
from rrope_jax.posgen.splits import Sizes as Sizes
from rrope_jax.posgen.splits import Splits as Splits
from rrope_jax.posgen.tasks import COMBINATIONS as COMBINATIONS
from rrope_jax.posgen.tasks import TASKS as TASKS
from rrope_jax.posgen.tasks import generate as generate
