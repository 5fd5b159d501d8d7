"""The programs of a config of `rrope evaluate`, for `rrope plan`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from rrope_jax.cli.errors import UsageError, refusing
from rrope_jax.evaluation.closed_ended import ClosedEndedSetting
from rrope_jax.evaluation.passkey import PasskeySetting
from rrope_jax.evaluation.ruler.setting import RulerSetting
from rrope_jax.evaluation.ruler.tasks import TASKS
from rrope_jax.io.description import Description
from rrope_jax.io.pretrained import OVERRIDABLE
from rrope_jax.jobs.evaluate_setting import EvaluateSetting
from rrope_jax.jobs.rope_fields import extend
from rrope_jax.model.presets import PRESETS
from rrope_jax.planning.evaluation import ModelEvaluation, PromptShape


def programs_of(setting: EvaluateSetting) -> ModelEvaluation:
    """Returns the programs of an evaluation; a preset stands for the checkpoint.

    Raises:
      UsageError: There is no preset, a field is wrong, or no enabled section can be planned.
    """
    preset_name = setting.model.get("preset")
    if preset_name not in PRESETS:
        raise UsageError(
            f"config.model.preset={preset_name!r}: name the model to plan, one of "
            f"{', '.join(PRESETS)}"
        )
    preset = PRESETS[preset_name]
    description = Description(preset.model, preset.rope, preset.context)
    changes = {key: setting.model[key] for key in OVERRIDABLE if key in setting.model}
    with refusing("config.model"):
        model = description.model.changed(changes)
    rope = extend(dataclasses.replace(description, model=model), setting.rope).rope
    sections = setting.eval.enabled()
    perplexity = sections.pop("perplexity", None)
    sections.pop("longppl", None)  # its rows are no longer than those of perplexity
    shapes = [
        dataclasses.replace(_PROMPTS[name](section), section=name)
        for name, section in sections.items()
    ]
    if perplexity is None and not shapes:
        raise UsageError(
            "config.eval: only perplexity, passkey, closed_ended and ruler are planned"
        )
    prompts = max(shapes, key=lambda shape: shape.context) if shapes else None
    return ModelEvaluation(model, rope, perplexity, prompts, setting.eval.batch_size)


def _of_passkey(section: PasskeySetting) -> PromptShape:
    return PromptShape(max(section.contexts), section.chunk, section.digits + section.extra_tokens)


def _of_closed_ended(section: ClosedEndedSetting) -> PromptShape:
    return PromptShape(section.context, section.chunk, section.max_tokens)


def _of_ruler(section: RulerSetting) -> PromptShape:
    written = max(TASKS[name].max_tokens for name in section.tasks)
    return PromptShape(max(section.contexts), section.chunk, written)


_PROMPTS: Mapping[str, Callable[[Any], PromptShape]] = {
    "passkey": _of_passkey,
    "closed_ended": _of_closed_ended,
    "ruler": _of_ruler,
}
