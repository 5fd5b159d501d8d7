"""Other positions for far pairs as users set them, and where they cannot go."""

import dataclasses
from typing import Any

import pytest

from rrope_jax.cli.errors import UsageError
from rrope_jax.cli.settings import from_config
from rrope_jax.io.description import Description
from rrope_jax.io.gguf import write as gguf_export
from rrope_jax.io.huggingface import write as huggingface_export
from rrope_jax.jobs.analyze import Study
from rrope_jax.jobs.posgen_setting import PosgenSetting
from rrope_jax.jobs.rope_fields import extend
from rrope_jax.model import ModelConfig
from rrope_jax.rope import RopeSpec
from tests.jobs.posgen_tiny import get_config

MODEL = ModelConfig(vocab_size=29, d_model=32, num_layers=1, num_heads=2, d_ff=24)
PLAIN = Description(MODEL, RopeSpec(head_dim=16, theta=1e5), context=2048)
SELF_EXTEND = {"far_positions": "self_extend", "far_window": 512, "far_group": 4}


def test_flags_set_them_on_a_checkpoint_and_take_them_back() -> None:
    extended = extend(PLAIN, SELF_EXTEND)
    assert extended.rope == dataclasses.replace(PLAIN.rope, **SELF_EXTEND)
    assert extend(extended, {"far_group": 8}).rope.far_group == 8
    assert extend(extended, {"far_positions": "none"}) == PLAIN
    yarn = extend(extended, {"scaling": "yarn", "factor": 2.0}).rope
    assert (yarn.scaling, yarn.far_group, yarn.original_context) == ("yarn", 4, 2048)


def test_jet_long_takes_the_context_of_the_checkpoint() -> None:
    group = {"far_positions": "jet_long", "far_window": 512}
    assert extend(PLAIN, group).rope.far_context == 2048
    assert extend(PLAIN, {**group, "far_context": 1024}).rope.far_context == 1024
    assert extend(extend(PLAIN, SELF_EXTEND), group).rope.far_group is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"far_group": 4}, r"config\.rope\.far_group = 4 has no effect with far_positions='none'"),
        ({"far_positions": "self_extend", "far_window": 4}, "far_group is not set, but far_pos"),
        ({"far_positions": "far"}, "far_positions='far' is unknown; choose one of none, self_ext"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, ValueError), match=message):
        extend(PLAIN, fields)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("writer", [huggingface_export, gguf_export])
def test_no_file_of_another_runtime_has_them(writer: Any, portable: bool) -> None:
    with pytest.raises(ValueError, match=r"set config\.rope\.far_positions=none, and choose them"):
        writer.express(extend(PLAIN, SELF_EXTEND), portable)


def _posgen(*methods: str, **rope: Any) -> PosgenSetting:
    config = get_config()
    config.methods = methods
    config.rope.update(rope)
    setting: PosgenSetting = from_config(PosgenSetting, config, "config")
    return setting


def test_a_grid_may_mix_methods_with_and_without() -> None:
    setting = _posgen("rope", "resonance_self_extend", far_window=4, far_group=2)
    program = setting.program()
    assert program.far_pairs
    evaluations = [each for t in setting.trainings(program) for each in t.evaluations]
    groups = {each.method: each.spec.far_group for each in evaluations}
    assert groups == {"rope": None, "resonance_self_extend": 2}
    assert {t.spec.far_positions for t in setting.trainings(program)} == {"none"}
    assert not _posgen("rope").program().far_pairs


def test_analysis_of_a_table_says_what_it_leaves_out() -> None:
    with pytest.raises(ValueError, match="'self_extend' gives far pairs other positions"):
        Study(train_length=8, test_length=16, methods=("rope", "self_extend"))
