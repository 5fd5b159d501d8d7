"""The precision of matrix products: refused, in the programs, in the report, in the identity."""

import functools
import re
import runpy
from pathlib import Path
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from rrope_jax.cli.errors import UsageError
from rrope_jax.cli.settings import from_config
from rrope_jax.jobs import posgen
from rrope_jax.jobs.posgen_setting import PosgenSetting
from rrope_jax.model import ModelConfig
from rrope_jax.posgen import report
from rrope_jax.posgen.config import PosgenTrainConfig, TaskConfig
from rrope_jax.posgen.published import is_paper
from rrope_jax.posgen.results import Results
from rrope_jax.posgen.training import MATMUL_PRECISIONS, PosgenProgram
from rrope_jax.rope import RopeSpec
from tests.posgen.test_report import make_cell, make_results

ROOT = Path(__file__).parents[2]
TASK = TaskConfig(
    modulus=5,
    train_length=8,
    test_length=16,
    train_sequences=8,
    validation_sequences=4,
    test_sequences=4,
)
MODEL = ModelConfig(vocab_size=6, d_model=16, num_layers=1, num_heads=2, d_ff=24, dropout=0.1)
TRAIN = PosgenTrainConfig(steps=2, batch_size=2, validate_every=2, eval_batch_size=2)


def _paper() -> ConfigDict:
    config: ConfigDict = runpy.run_path(str(ROOT / "configs" / "posgen_paper.py"))["get_config"]()
    return config


def _products(program: PosgenProgram) -> tuple[str, str]:
    """The text of the programs that train and test."""
    state = jax.eval_shape(program.init, jax.random.key(0))
    data = jax.eval_shape(functools.partial(program.task.data, "cot"), jax.random.key(0))
    table = program.tables(RopeSpec(head_dim=8), 8)
    tables = jax.tree.map(lambda x: x[None], table)
    steps = functools.partial(program.train_steps, steps=2)
    return (
        jax.jit(steps).lower(state, data.train_NT, table, jax.random.key(0)).as_text(),
        jax.jit(program.evaluate).lower(state.params, data.test_NT, tables).as_text(),
    )


@pytest.mark.parametrize(
    ("precision", "stated"),
    [("float32", "HIGHEST"), ("tensorfloat32", "HIGH"), ("bfloat16", "DEFAULT"), (None, "DEFAULT")],
)
def test_every_product_has_it(precision: str | None, stated: str) -> None:
    """Those of the backward pass too."""
    program = PosgenProgram(TASK, MODEL, TRAIN, matmul_precision=precision)
    for text in _products(program):
        products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
        assert products
        for line in products:
            found = re.search(r"precision = \[(\w+), (\w+)\]", line)
            assert (found.groups() if found else ("DEFAULT",) * 2) == (stated, stated)


def test_unknown_precision_is_refused() -> None:
    config = _paper()
    config.matmul_precision = "fp32"
    with pytest.raises(UsageError, match=r"matmul_precision='fp32'.*tensorfloat32"):
        from_config(PosgenSetting, config, "config").program()


@pytest.mark.parametrize("precision", MATMUL_PRECISIONS)
def test_it_belongs_to_the_run(precision: str) -> None:
    config = _paper()
    plain = posgen._identity(config.to_dict())
    assert "matmul_precision" not in plain  # as in workdirs from before the key
    config.matmul_precision = precision
    assert posgen._identity(config.to_dict()) == {**plain, "matmul_precision": precision}
    assert from_config(PosgenSetting, config, "config").program().matmul_precision == precision


@pytest.mark.parametrize(
    "change",
    [
        {"matmul_precision": "float32"},
        {"model.compute_dtype": "bfloat16"},
        {"model.attention": "xla"},
        {"train.validate_every": 1170},
    ],
    ids=str,
)
def test_it_is_the_papers_protocol_still(change: dict[str, Any]) -> None:
    config = _paper()
    # the fields' defaults, which the config leaves out
    config.model.update(compute_dtype="float32", attention="auto")
    config.update_from_flattened_dict(change)
    setting = from_config(PosgenSetting, config, "config")
    assert is_paper(setting.program(), setting.rope, setting.rope_at_test)


def test_report_says_it() -> None:
    results = make_results([make_cell("cot", "rope", 0, 0.5)])
    assert "float32 products" not in report.markdown(Results.from_json(results))
    results["setting"]["matmul_precision"] = "tensorfloat32"
    assert "| float32 products | tensorfloat32 |" in report.markdown(Results.from_json(results))
