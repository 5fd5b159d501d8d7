"""`rrope evaluate`: perplexity by context length, passkey retrieval, closed-ended tasks, RULER."""

import dataclasses
import json
import logging
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx

from rrope_jax.cli import backend
from rrope_jax.cli.command_line import one_flag_a_word, parse
from rrope_jax.cli.errors import UsageError, refusing
from rrope_jax.cli.settings import build, from_config
from rrope_jax.data.config import DataConfig, MixtureConfig
from rrope_jax.data.mixture import open_text
from rrope_jax.evaluation.closed_ended import ClosedEnded, ClosedEndedSetting
from rrope_jax.evaluation.devices import Devices, every_nth
from rrope_jax.evaluation.longppl import LongPerplexity, LongPerplexitySetting
from rrope_jax.evaluation.passkey import Passkey, PasskeySetting
from rrope_jax.evaluation.perplexity import Perplexity, PerplexitySetting
from rrope_jax.evaluation.ruler.benchmark import Ruler
from rrope_jax.evaluation.ruler.setting import RulerSetting
from rrope_jax.evaluation.units import Benchmark, run_units
from rrope_jax.io import json_text
from rrope_jax.io.paths import absolute, any_path
from rrope_jax.jobs.evaluate_setting import EvaluateSetting
from rrope_jax.jobs.model_mesh import mesh_config
from rrope_jax.jobs.pretrained_model import (
    PretrainedModel,
    advising_on_memory,
    define_checkpoint,
    load_model,
    settable,
)
from rrope_jax.jobs.shared_units import between_units, shared_store
from rrope_jax.model import Decoder
from rrope_jax.reporting.pieces import FinishedPieces
from rrope_jax.reporting.writing import print_written, versions, write_results
from rrope_jax.rope.methods import method_of
from rrope_jax.run import distributed
from rrope_jax.run.distributed import Peers
from rrope_jax.run.peers import RETRYABLE
from rrope_jax.run.stopping import held
from rrope_jax.run.workdir import Workdir

SUMMARY = (
    "Perplexity over the context length, passkey retrieval, closed-ended tasks and RULER for a "
    "checkpoint of any format. With --compare DIR..., puts the results of several runs into one "
    "table and one plot instead; that needs --workdir only."
)

_LOG = logging.getLogger(__name__)
_COMPARE = "--compare"
# Elements of each parameter that tell checkpoints apart without reading all of a large one.
_FINGERPRINT_ELEMENTS = 4096


def _perplexity(
    section: PerplexitySetting, model: PretrainedModel, setting: EvaluateSetting
) -> Perplexity:
    return Perplexity(
        section, model.decoder, _heldout(model, setting), batch_size=setting.eval.batch_size
    )


def _long_perplexity(
    section: LongPerplexitySetting, model: PretrainedModel, setting: EvaluateSetting
) -> LongPerplexity:
    documents = _heldout(model, setting)
    if section.evaluator is None:
        return LongPerplexity(section, model.decoder, documents, batch_size=setting.eval.batch_size)
    evaluator = load_model(
        section.evaluator,
        rope={},
        model={},
        tokenizer=setting.data.get("tokenizer"),
        mesh=model.mesh,
        row_lengths=section.contexts,
    )
    if evaluator.tokenizer.fingerprint != model.tokenizer.fingerprint:
        raise ValueError(
            f"evaluator={section.evaluator!r} has another tokenizer than the checkpoint, so its "
            "key tokens are not those of the model; give one of the same family, or None"
        )
    return LongPerplexity(
        section,
        model.decoder,
        documents,
        evaluator=evaluator.decoder,
        evaluator_id=json.dumps(_identity(evaluator), sort_keys=True),
        batch_size=setting.eval.batch_size,
    )


def _heldout(model: PretrainedModel, setting: EvaluateSetting) -> Sequence[tuple[str, np.ndarray]]:
    """The held-out documents as tokens."""
    data: MixtureConfig | DataConfig
    if "sources" in setting.data:
        data = build(MixtureConfig, setting.data, "config.data")
    else:
        data = build(DataConfig, setting.data, "config.data")
    with refusing("config.data"):
        return open_text(data, model.tokenizer).heldout


def _passkey(section: PasskeySetting, model: PretrainedModel, setting: EvaluateSetting) -> Passkey:
    return Passkey(section, model.decoder, model.tokenizer, bos=setting.bos)


def _closed_ended(
    section: ClosedEndedSetting, model: PretrainedModel, setting: EvaluateSetting
) -> ClosedEnded:
    return ClosedEnded(
        section, model.decoder, model.tokenizer, bos=setting.bos, stop_ids=model.stop_ids
    )


def _ruler(section: RulerSetting, model: PretrainedModel, setting: EvaluateSetting) -> Ruler:
    return Ruler(section, model.decoder, model.tokenizer, bos=setting.bos, stop_ids=model.stop_ids)


_SECTIONS: Mapping[str, Callable[[Any, PretrainedModel, EvaluateSetting], Benchmark[Any]]] = {
    "perplexity": _perplexity,
    "longppl": _long_perplexity,
    "passkey": _passkey,
    "closed_ended": _closed_ended,
    "ruler": _ruler,
}


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    words = one_flag_a_word(argv, _COMPARE)
    comparing = any(word.partition("=")[0] == _COMPARE for word in argv)
    values = parse(
        "evaluate",
        SUMMARY,
        words,
        _define_compare if comparing else _define,
        config=not comparing,
        known=lambda config: settable(EvaluateSetting),
    )
    if comparing:
        if not values.compare:
            raise UsageError(f"{_COMPARE} names no folder; give workdirs of rrope evaluate")
        return _compare(values.compare, values.workdir)
    setting = from_config(EvaluateSetting, values.config, "config")
    return distributed.run(
        "evaluate",
        lambda peers: _evaluate(setting, values.checkpoint, values.adapter, values.workdir, peers),
        preemption=True,
    )


def _evaluate(
    setting: EvaluateSetting, checkpoint: str, adapter: str | None, folder: str, peers: Peers
) -> int:
    """Runs the evaluation in every process; a process that lacks a file ends all of them."""
    config = dataclasses.asdict(setting)
    config["data"].pop("cache_dir", None)
    peers.check_same({"config": config})
    model = load_model(
        checkpoint,
        rope=setting.rope,
        model=setting.model,
        tokenizer=setting.data.get("tokenizer"),
        adapter=adapter,
        mesh=mesh_config(setting.mesh, peers),
        row_lengths=setting.row_lengths,
    )
    enabled = setting.eval.enabled()
    sections = []
    for name, section in enabled.items():
        with refusing(f"config.eval.{name}"):
            sections.append(_SECTIONS[name](section, model, setting))
    identity = _identity(model)
    names = [unit.name for section in sections for unit in section.units]
    peers.check_same({"--checkpoint": identity, "config.eval: the texts and prompts": names})
    # late: errors must not wait for matplotlib
    from rrope_jax.jobs.evaluate_results import method_label, write_finished

    with peers.claim(folder, identity) as workdir:
        backend.configure_logging(logging.INFO if peers.first else logging.ERROR)
        constant = {
            "checkpoint": checkpoint,
            **({} if adapter is None else {"adapter": adapter}),
            "method": method_of(model.description.rope),
            "rope": model.description.rope.fields(),
            "model": model.decoder.config.fields(),
            "original_context": model.original_context,
            "context": model.description.context,
            "stop_ids": list(model.stop_ids),
            "setting": {name: dataclasses.asdict(section) for name, section in enabled.items()},
            "backend": backend.describe(),
            "versions": versions("jax", "flax"),
        }
        _LOG.info("%s", constant["backend"])
        _LOG.info("%s: %s", checkpoint, method_label(constant))
        batch_size = Devices.of(model.decoder).rows(setting.eval.batch_size)
        store = FinishedPieces(workdir, "units", checksums=True)
        finished = False
        try:
            with advising_on_memory(model.decoder.config), between_units(peers) as told_to_stop:
                finished = run_units(
                    [unit for section in sections for unit in section.units],
                    shared_store(store, names, peers),
                    batch_size=batch_size,
                    stopping=told_to_stop,
                )
        finally:  # a stopped run also reports what it has finished
            with held():
                written = write_finished(workdir, constant, sections, store) if peers.first else []
        if finished:
            print_written(written)
            return 0
    if peers.first:
        print("rrope evaluate: told to stop; the same command goes on from here", file=sys.stderr)
    return RETRYABLE


def _compare(folders: Sequence[str], workdir_path: str) -> int:
    from rrope_jax.evaluation import comparison  # late, as it imports matplotlib

    runs = comparison.label_runs({folder: _read_results(folder) for folder in folders})
    with Workdir.claim(workdir_path, {"compare": [str(absolute(f)) for f in folders]}) as workdir:
        backend.configure_logging()
        results = comparison.summarise(runs)
        written = write_results(
            workdir, results, comparison.markdown(results), comparison.plots(results)
        )
        print_written(written)
    return 0


def _identity(model: PretrainedModel) -> dict[str, Any]:
    """Returns what all units depend on; the rest is in the units' names.

    The checkpoint's folder may move, but its weights must not change.
    """
    decoder = model.decoder
    return {
        "weights": _fingerprint(decoder),
        "rope": decoder.rope.fields(),
        "model": decoder.config.fields(),
        "tokenizer": model.tokenizer.fingerprint,
    }


def _fingerprint(decoder: Decoder) -> str:
    """Computes a checksum of a sample of every parameter's elements."""
    checksum = 0
    for _, leaf in nnx.to_flat_state(nnx.state(decoder, nnx.Param)):
        values: jax.Array = leaf[...]
        some = every_nth(values, max(1, values.size // _FINGERPRINT_ELEMENTS))
        checksum = zlib.crc32(np.ascontiguousarray(some).tobytes(), checksum)
    return f"{checksum:08x}"


def _read_results(folder: str) -> dict[str, Any]:
    path = any_path(folder) / "results.json"
    try:
        found: dict[str, Any] = json_text.parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--compare: {path} cannot be read ({error}); give workdirs of rrope evaluate"
        ) from error
    if not isinstance(found, dict) or "method" not in found or "setting" not in found:
        raise UsageError(f"--compare: {path} is not a result of rrope evaluate")
    return found


def _define_compare(values: flags.FlagValues) -> None:
    flags.DEFINE_multi_string(
        "compare", None, "workdirs of finished runs, after one another", flag_values=values
    )
    flags.DEFINE_string("workdir", None, "folder of the results", flag_values=values, required=True)


def _define(values: flags.FlagValues) -> None:
    define_checkpoint(values)
    _define_compare(values)
