"""Changes of an evaluation that take less memory, and the first of them that fits."""

import dataclasses
import logging
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from rrope_jax.model.config import WEIGHT_DTYPES
from rrope_jax.planning.evaluation import ModelEvaluation
from rrope_jax.planning.plan import Cache, Plan, make_plan
from rrope_jax.planning.roofline.collectives import summarize
from rrope_jax.planning.topology import Topology

_LOG = logging.getLogger(__name__)
_MOST_COMPILED = 8
_LEAST_CHUNK = 256  # tokens; products with fewer would wait for the weights


class SmallerEvaluation(NamedTuple):
    """An evaluation that needs less memory.

    Attributes:
      job: what it computes.
      fields: what differs from the config, such as `eval.batch_size=1`.
    """

    job: ModelEvaluation
    fields: tuple[str, ...]


class EvaluationTrial(NamedTuple):
    """A smaller evaluation and the plans of its programs."""

    change: SmallerEvaluation
    plans: list[Plan]

    @property
    def fits(self) -> bool:
        """Whether all of its programs do."""
        return all(plan.fits for plan in self.plans)


def smaller(job: ModelEvaluation) -> Iterator[SmallerEvaluation]:
    """Evaluations that need less memory, each with the changes of the one before.

    First those that change the time alone: fewer rows at once, then shorter chunks. Then those that
    round more: weights in bfloat16, products and cache in bfloat16, weights in int8.
    """
    fields: dict[str, object] = {}

    def changed() -> SmallerEvaluation:
        return SmallerEvaluation(job, tuple(f"{key}={value}" for key, value in fields.items()))

    while job.batch_size > 1:
        fields["eval.batch_size"] = job.batch_size // 2
        job = dataclasses.replace(job, batch_size=job.batch_size // 2)
        yield changed()
    perplexity, prompts, before = job.perplexity, job.prompts, dict(fields)
    if perplexity is not None and (perplexity.chunk or 0) > _LEAST_CHUNK:
        fields["eval.perplexity.chunk"] = _LEAST_CHUNK
        perplexity = dataclasses.replace(perplexity, chunk=_LEAST_CHUNK)
    if prompts is not None and prompts.chunk > _LEAST_CHUNK:
        fields[f"eval.{prompts.section}.chunk"] = _LEAST_CHUNK
        prompts = dataclasses.replace(prompts, chunk=_LEAST_CHUNK)
    if fields != before:
        job = dataclasses.replace(job, perplexity=perplexity, prompts=prompts)
        yield changed()
    dtypes = list(WEIGHT_DTYPES)
    for dtype in dtypes[dtypes.index(job.model.weight_dtype) :]:
        for key, value in (("weight_dtype", dtype), ("compute_dtype", "bfloat16")):
            if dtype == "float32" or getattr(job.model, key) == value:
                continue
            fields[f"model.{key}"] = value
            change: dict[str, Any] = {key: value}
            job = dataclasses.replace(job, model=dataclasses.replace(job.model, **change))
            yield changed()


def nearest(
    job: ModelEvaluation, topology: Topology, cache: Cache, *, quick: bool
) -> tuple[list[EvaluationTrial], int]:
    """Compiles smaller evaluations up to the first that fits.

    Those whose weights and cache alone are too much are not compiled.

    Args:
      job: an evaluation that does not fit.
      topology: the device.
      cache, quick: see `make_plan`.

    Returns:
      All trials, of which only the last one may fit; and how many devices have room for the weights
      and the cache of the smallest, 1 if one fits.
    """
    trials: list[EvaluationTrial] = []
    devices, needed = topology.devices(), _state_bytes(job, topology)
    for change in smaller(job):
        if len(trials) == _MOST_COMPILED:
            break
        needed = _state_bytes(change.job, topology)
        if needed >= topology.chip.memory:
            continue
        _LOG.info("does not fit; trying %s", " ".join(change.fields))
        workloads = change.job.workloads(devices)
        plans = [make_plan(each, topology, cache, summarize, quick=quick) for each in workloads]
        trials.append(EvaluationTrial(change, plans))
        if trials[-1].fits:
            return trials, 1
    return trials, max(2, math.ceil(needed / topology.chip.memory))


def _state_bytes(job: ModelEvaluation, topology: Topology) -> int:
    """Bytes of the weights and the cache, the most of any program."""
    devices = topology.devices()
    return max(
        sum(each.demands(each.make_mesh(devices)).state.values()) for each in job.workloads(devices)
    )
