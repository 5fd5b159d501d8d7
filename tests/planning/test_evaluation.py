"""Plans of evaluations, for this machine's own CPU."""

import dataclasses
from typing import Any

import pytest

from rrope_jax.cli.errors import UsageError
from rrope_jax.evaluation.passkey import PasskeySetting
from rrope_jax.evaluation.perplexity import PerplexitySetting
from rrope_jax.jobs.evaluate_setting import EvaluateSetting, Sections
from rrope_jax.jobs.plan_evaluation import programs_of
from rrope_jax.model.cache import cache_bytes
from rrope_jax.model.decoder import parameter_bytes
from rrope_jax.model.flops import causal_flops
from rrope_jax.planning import report
from rrope_jax.planning.evaluation import ModelEvaluation, PromptShape
from rrope_jax.planning.plan import make_plan
from rrope_jax.planning.roofline.collectives import summarize
from rrope_jax.planning.roofline.smaller_evaluation import nearest, smaller
from rrope_jax.planning.roofline.step_time import estimate
from rrope_jax.planning.topology import Topology
from rrope_jax.sharding import LayoutError

CPU = Topology("cpu:1", "cpu", (1,))
SECTIONS = Sections(
    perplexity=PerplexitySetting(contexts=(64, 256), chunk=64),
    passkey=PasskeySetting(contexts=(256,), chunk=32, digits=5, extra_tokens=3),
)


class _Kept(dict[str, Any]):
    def put(self, key: str, value: Any) -> None:
        self[key] = value


def _job(**model: Any) -> ModelEvaluation:
    fields = {"preset": "tiny", "weight_dtype": "int8", **model}
    return programs_of(EvaluateSetting(eval=SECTIONS, model=fields))


def test_the_programs_of_a_config() -> None:
    job = _job()
    assert job.prompts == PromptShape(context=256, chunk=32, written=8)
    assert [program.phase for program in job.workloads(())] == ["perplexity", "prompt", "answer"]
    job.check(CPU.devices())
    with pytest.raises(LayoutError, match="planned for one device, and the topology has 2"):
        job.check(CPU.devices() * 2)
    with pytest.raises(UsageError, match=r"config\.model\.preset=None: name the model"):
        programs_of(EvaluateSetting(eval=SECTIONS))


def test_programs_are_compiled_and_counted() -> None:
    job = _job()
    plans = [make_plan(each, CPU, _Kept(), summarize) for each in job.workloads(())]
    perplexity, prompt, answer = plans
    cache = cache_bytes(job.model, 1, 256)
    for plan in plans:
        memory, state = plan.compilation.memory, plan.demands.state
        assert memory is not None
        assert state == {"parameters": parameter_bytes(job.model), "cache": cache}
        if plan is not prompt:  # which needs no output matrix
            assert memory.arguments >= sum(state.values())
        # the cache is written in place: what is not an argument is smaller than it
        assert memory.outputs < cache / 2
        assert plan.fits
    assert [plan.demands.calls for plan in plans] == [4, 8, 1]
    assert [plan.demands.tokens for plan in plans] == [64, 32, 8]
    flops = causal_flops(job.model, 0, 256, logits=True)
    assert 4 * perplexity.demands.model_flops == flops
    assert 8 * prompt.demands.model_flops == causal_flops(job.model, 0, 256, logits=False)
    assert answer.demands.model_flops == causal_flops(job.model, 248, 256, logits=True)
    # every token of an answer reads all weights and the cache
    traffic = estimate(answer.workload, CPU).traffic
    assert traffic["weights"] == 8 * parameter_bytes(job.model)
    assert traffic["attention"] == 8 * cache

    phases = [{**plan.as_json(), **estimate(plan.workload, CPU).as_json()} for plan in plans]
    table = report.markdown({**phases[0], "phases": phases}, figures=False)
    assert "| answer | 1 |" in table
    assert "int8 weights" in table


def test_what_takes_less_memory_keeps_the_numbers_first() -> None:
    prompts = PromptShape(context=8192, chunk=2048, written=8, section="ruler")
    perplexity = PerplexitySetting(contexts=(8192,), chunk=4096)
    job = dataclasses.replace(
        _job(weight_dtype="float32"), perplexity=perplexity, prompts=prompts, batch_size=4
    )
    changes = list(smaller(job))
    assert [change.fields for change in changes[:2]] == [
        ("eval.batch_size=2",),
        ("eval.batch_size=1",),
    ]
    assert changes[2].fields == (
        *("eval.batch_size=1", "eval.perplexity.chunk=256", "eval.ruler.chunk=256"),
    )
    assert [change.fields[3:] for change in changes[3:]] == [
        ("model.weight_dtype=bfloat16",),
        ("model.weight_dtype=bfloat16", "model.compute_dtype=bfloat16"),
        ("model.weight_dtype=int8", "model.compute_dtype=bfloat16"),
    ]
    sizes = [_bytes(job), *(_bytes(change.job) for change in changes)]
    assert sizes == sorted(sizes, reverse=True)


def _bytes(job: ModelEvaluation) -> int:
    prompts = job.prompts
    assert prompts is not None
    return parameter_bytes(job.model) + cache_bytes(job.model, job.batch_size, prompts.context)


@pytest.mark.heavy
def test_the_nearest_change_that_fits_is_compiled() -> None:
    """Rows whose work space, not their cache, is more than the core's 2 GiB."""
    job = dataclasses.replace(_job(), prompts=None, batch_size=4096)
    cache = _Kept()
    ((change, (plan,)),), devices = nearest(job, CPU, cache, quick=False)
    assert (change.fields, plan.fits, devices) == (("eval.batch_size=2048",), True, 1)
    assert len(cache) == 1


def test_what_no_change_makes_fit_says_how_many_devices_have_room() -> None:
    context = 2**25  # 256 bytes a token in float32, 128 in bfloat16
    prompts = dataclasses.replace(_job().prompts or PromptShape(0, 0, 0), context=context)
    job = dataclasses.replace(_job(), perplexity=None, prompts=prompts)
    trials, devices = nearest(job, CPU, _Kept(), quick=False)
    assert (trials, devices) == ([], 3)  # 4 GiB, and the weights


def test_identities_differ_by_what_is_compiled() -> None:
    first, *others = _job().workloads(())
    (whole, *_) = _job(weight_dtype="bfloat16").workloads(())
    identities = [str(each.identity()) for each in (first, *others, whole)]
    assert len(set(identities)) == 4
    unchunked = dataclasses.replace(SECTIONS, perplexity=PerplexitySetting(contexts=(256,)))
    job = programs_of(EvaluateSetting(eval=unchunked, model={"preset": "tiny"}))
    (demands, *_) = [each.demands(each.make_mesh(CPU.devices())) for each in job.workloads(())]
    assert "cache" not in demands.state
    assert demands.calls == 1
