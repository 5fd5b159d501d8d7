"""`rrope analyze`: wavelengths, feature gap and uniqueness of rotary embeddings."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from rrope_jax.cli import backend
from rrope_jax.cli.command_line import parse
from rrope_jax.cli.errors import UsageError
from rrope_jax.cli.settings import INLINE, from_config, unset_group
from rrope_jax.jobs.rope_fields import spec_of, spec_of_method
from rrope_jax.jobs.rope_groups import FULL, SLIDING, RopeFields
from rrope_jax.reporting.writing import print_written, write_results
from rrope_jax.rope import RopeSpec, analysis, frequencies
from rrope_jax.rope.methods import changes_far_positions
from rrope_jax.run.workdir import Workdir

SUMMARY = (
    "Wavelengths, critical dimension, feature gap and uniqueness of a rotary embedding and of the "
    "methods it is compared with. Takes any config with rope, train_length, test_length and "
    "methods; what else is in it is not read."
)

# The plot of coincidences shows the maximum of each of this many ranges of unseen distances.
_STRETCHES = 512
_LONGEST_SEARCH = 2**16  # tokens; the search for a base takes seconds at it
_LONGEST_NUMBER = 14_000  # bits; Python converts integers of up to 4300 digits to text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What to analyze.

    Attributes:
      train_length: Length in training, in tokens; positions 0 to `train_length - 1` are seen.
      test_length: Length at test, in tokens; positions from `train_length` to `test_length - 1`
        are unseen. Scalings that depend on the sequence length use this one.
      methods: RoPE methods to compare, as `[rule_]scaling`, such as `yarn`, `resonance_yarn` and
        `rational_yarn`; plain RoPE is `rope`.
      feature: Index of the feature whose angles are plotted; defaults to the pre-critical feature
        with the largest gap without resonance.
      near: Number of near distances, 0 to `near - 1`, that an unseen one is compared with.

    Raises:
      ValueError: A field is out of range, or a method is unknown or given twice.
    """

    train_length: int
    test_length: int
    methods: tuple[str, ...]
    feature: int | None = None
    near: int = 1

    def __post_init__(self) -> None:
        if self.train_length < 1:
            raise ValueError(f"train_length={self.train_length} must be at least 1")
        if self.test_length <= self.train_length:
            raise ValueError(
                f"test_length={self.test_length} must exceed train_length={self.train_length}; "
                "without unseen positions there is nothing to analyze"
            )
        if self.test_length > analysis.LONGEST:
            raise ValueError(
                f"test_length={self.test_length} must be at most {analysis.LONGEST}: all unseen "
                "positions are looked at"
            )
        if not 1 <= self.near <= self.train_length:
            raise ValueError(f"near={self.near} must be from 1 to train_length={self.train_length}")
        if self.near * (self.test_length - self.train_length) > analysis.MOST_PAIRS:
            raise ValueError(
                f"near={self.near} times the {self.test_length - self.train_length} unseen "
                f"distances must be at most {analysis.MOST_PAIRS}"
            )
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods={self.methods!r} must name at least one, and none twice")
        for method in self.methods:
            if changes_far_positions(method):
                raise ValueError(
                    f"methods={self.methods!r}: {method!r} gives far pairs other positions, and "
                    "tables are measured at the tokens' own; take the method without these"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalyzeSetting:
    """The config fields that this command reads.

    Attributes:
      study: The fields outside groups.
      rope: Fields of RopeSpec; `head_dim` may come from `model`. What is measured are
        full-attention layers; of those with a sliding window, wavelengths are listed.
      model: The model group of another command's config; only the head size is read.
    """

    study: Annotated[Study, INLINE]
    rope: RopeFields
    model: Any = None


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    values = parse(
        "analyze", SUMMARY, argv, _define, known=lambda config: unset_group(AnalyzeSetting)
    )
    study, spec, specs = plan(values.config)
    results = analyze(study, spec, specs)
    from rrope_jax.jobs import analyze_report  # late: errors must not wait for matplotlib

    identity = {
        **dataclasses.asdict(study),
        "rope": spec.fields(),
        "specs": {method: each.fields() for method, each in specs.items()},
    }
    with Workdir.claim(values.workdir, identity) as workdir:
        log = backend.configure_logging()
        written = write_results(
            workdir, results, analyze_report.markdown(results), analyze_report.plots(results)
        )
        log.info("%s", analyze_report.headline(results))
        print_written(written)
    return 0


def plan(config: ConfigDict) -> tuple[Study, RopeSpec, dict[str, RopeSpec]]:
    """Returns the study, the spec of `config.rope` itself, and the spec of each method.

    Raises:
      UsageError: The config is wrong; the message names the key.
    """
    names = {field.name for cls in (Study, AnalyzeSetting) for field in dataclasses.fields(cls)}
    group = ConfigDict({key: config[key] for key in config if key in names - {"study"}})
    setting = from_config(AnalyzeSetting, group, "config")
    study, rope = setting.study, setting.rope
    fixed = {} if "head_dim" in rope else _head_dim(setting.model)
    spec = spec_of(
        rope,
        scaling=rope.get("scaling", "none"),
        resonance=rope.get("resonance", False),
        **fixed,
    )
    specs = {
        method: spec_of_method(rope, "config.rope", method, **fixed) for method in study.methods
    }
    if study.feature is not None and not 0 <= study.feature < spec.rotary_dim // 2:
        raise UsageError(
            f"config.feature = {study.feature}: there are features 0 to "
            f"{spec.rotary_dim // 2 - 1}; None chooses one"
        )
    return study, spec, specs


def _head_dim(model: Any) -> dict[str, Any]:
    """Returns `head_dim` for RopeSpec, or an empty dict if the model config does not give it."""
    if isinstance(model, ConfigDict):
        if model.get("head_dim") is not None:
            return {"head_dim": model.head_dim}
        d_model, num_heads = model.get("d_model"), model.get("num_heads")
        if isinstance(d_model, int) and isinstance(num_heads, int) and num_heads > 0:
            return {"head_dim": d_model // num_heads}
    return {}


def analyze(study: Study, spec: RopeSpec, specs: Mapping[str, RopeSpec]) -> dict[str, Any]:
    """Computes the content of results.json.

    Raises:
      UsageError: A wavelength is too short to be rounded, uniqueness has too many digits, or the
        feature to plot never rotates.
    """
    plain = spec.with_method(spec.scaling, resonance=False)
    try:
        resonant = spec if spec.resonance else dataclasses.replace(spec, resonance=True)
    except ValueError as error:
        raise UsageError(f"config.rope: {error}") from error
    of_spec, of_plain, of_resonant = (_measure(study, each) for each in (spec, plain, resonant))
    columns = {
        "wavelength": frequencies(plain, study.test_length).wavelengths.tolist(),
        "resonant_wavelength": [
            int(wavelength) if wavelength.is_integer() else wavelength
            for wavelength in frequencies(resonant, study.test_length).wavelengths.tolist()
        ],
        "pre_critical": of_spec.pop("pre_critical"),
        "feature_gap": of_spec.pop("feature_gap"),
        "plain_feature_gap": of_plain["feature_gap"],
        "resonant_feature_gap": of_resonant["feature_gap"],
    }
    drawn = study.feature
    if drawn is None:
        drawn = int(np.argmax(np.where(of_plain["pre_critical"], of_plain["feature_gap"], 0.0)))
    if not math.isfinite(columns["wavelength"][drawn]):
        raise UsageError(f"config.feature = {drawn}: this feature never turns; choose another")
    return {
        "train_length": study.train_length,
        "test_length": study.test_length,
        "rope": spec.fields(),
        **_layer_types(study, spec),
        **of_spec,
        "features": [
            {"index": index, **dict(zip(columns, row, strict=True))}
            for index, row in enumerate(zip(*columns.values(), strict=True))
        ],
        "drawn_feature": drawn,
        "near": study.near,
        "least_theta": _least_theta(study, spec),
        "methods": {
            method: {
                **_measure(study, each),
                "coincidence": _coincidence(study, each),
                **_resolution(study, each),
            }
            for method, each in specs.items()
        },
    }


def _layer_types(study: Study, spec: RopeSpec) -> dict[str, Any]:
    """The wavelengths of each layer type, where these have embeddings of their own."""
    if spec.sliding_attention is None:
        return {}
    found = {}
    for name in (FULL, SLIDING):
        computed = frequencies(spec.of(name), study.test_length)
        found[name] = {
            "rope": spec.of(name).fields(),
            "attention_factor": computed.attention_factor,
            "wavelengths": computed.wavelengths.tolist(),
        }
    return {"layer_types": found}


def _measure(study: Study, spec: RopeSpec) -> dict[str, Any]:
    """Measures an embedding with `rrope_jax.rope.analysis`, using its tables at test length."""
    train_length, test_length = study.train_length, study.test_length
    pre_critical = analysis.is_pre_critical(spec, train_length, seq_len=test_length)
    gap = analysis.feature_gap(spec, train_length, test_length, seq_len=test_length)
    uniqueness = analysis.uniqueness(spec, train_length, seq_len=test_length)
    if uniqueness.bit_length() > _LONGEST_NUMBER:
        raise UsageError(
            f"config.rope.head_dim: the {int(pre_critical.sum())} pre-critical features repeat "
            "together only after a number of tokens that has too many digits to be written; "
            "choose a smaller head_dim or train_length"
        )
    return {
        "critical_dimension": int(pre_critical.sum()),
        "uniqueness": uniqueness,
        "attention_factor": frequencies(spec, test_length).attention_factor,
        "pre_critical": pre_critical.tolist(),
        "feature_gap": gap.tolist(),
    }


def _resolution(study: Study, spec: RopeSpec) -> dict[str, Any]:
    """Measures what an embedding's tables tell apart, and what its rule of resonance moved."""
    train_length, length = study.train_length, study.test_length
    distance = max(train_length - 1, 1)
    return {
        "distortion": analysis.distortion(spec, distance, seq_len=length).tolist(),
        "distinct_angles": analysis.distinct_angles(spec, length, seq_len=length).tolist(),
        "effective_rank": analysis.effective_rank(spec, train_length, seq_len=length),
        "context_bound": analysis.context_bound(spec, length, seq_len=length),
    }


def _least_theta(study: Study, spec: RopeSpec) -> float | None:
    """Finds the least base of plain RoPE for the test length; None where it would take long."""
    if study.test_length > _LONGEST_SEARCH:
        return None
    return analysis.least_theta(spec.rotary_dim, study.test_length)


def _coincidence(study: Study, spec: RopeSpec) -> dict[str, Any]:
    """Finds the unseen distance most similar to a near one, and the maxima for the plot."""
    first = study.train_length
    alike = analysis.coincidence(
        spec, first, study.test_length, near=study.near, seq_len=study.test_length
    )
    if np.isnan(alike).any():  # no feature completes a turn within the training length
        return {"distance": None, "similarity": None, "stretches": []}
    starts = np.unique(np.linspace(0, alike.size, _STRETCHES, endpoint=False, dtype=int))
    return {
        "distance": first + int(np.argmax(alike)),
        "similarity": float(alike.max()),
        "stretches": [
            [first + int(start), float(most)]
            for start, most in zip(starts, np.maximum.reduceat(alike, starts), strict=True)
        ],
    }


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of the results", flag_values=values, required=True)
