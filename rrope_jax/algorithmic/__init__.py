"""The 15 algorithmic tasks of the Chomsky hierarchy, drawn under jit and vmap, and their ablation.

The tasks need JAX and numpy only. Import the other modules, which train models on them, explicitly.
"""

from rrope_jax.algorithmic.answers import Answer as Answer
from rrope_jax.algorithmic.tasks import LEVELS as LEVELS
from rrope_jax.algorithmic.tasks import TASKS as TASKS
from rrope_jax.algorithmic.tasks import AlgorithmicTask as AlgorithmicTask
from rrope_jax.algorithmic.tasks import Row as Row
from rrope_jax.algorithmic.tasks import generate as generate
from rrope_jax.algorithmic.tasks import solve as solve
