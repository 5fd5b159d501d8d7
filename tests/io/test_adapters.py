"""Adapters in PEFT's format: we and PEFT read what either writes, but for what is refused."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from rrope_jax.__main__ import main
from rrope_jax.io import conversion, pretrained
from rrope_jax.io.adapters.adapter import AdaptedSource, Adapter, Factors
from rrope_jax.io.adapters.config import TARGETS
from rrope_jax.io.description import Description
from rrope_jax.io.memory import DecoderSource
from rrope_jax.io.weights import WEIGHTS, Weight, matrix_shapes
from rrope_jax.model import Decoder, ModelConfig
from rrope_jax.rope import RopeSpec

MODEL = ModelConfig(
    vocab_size=96, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48
)
PLAIN = RopeSpec(head_dim=8, theta=1e4)
RESONANT = RopeSpec(
    head_dim=8, theta=1e4, scaling="yarn", factor=4.0, original_context=32, resonance=True
)
FLAGS = (
    *("--config.rope.scaling=yarn", "--config.rope.factor=4"),
    *("--config.rope.original_context=32", "--config.rope.resonance=True"),
)
TOKENS = np.random.default_rng(0).integers(0, 96, (2, 24)).astype(np.int32)


def _base(folder: Path, family: str, **fields: Any) -> Path:
    """A tiny model as a Hugging Face folder."""
    model = dataclasses.replace(MODEL, **fields)
    decoder = Decoder(model, PLAIN, rngs=nnx.Rngs(0))
    source = DecoderSource(decoder, Description(model, PLAIN, 32, family=family))
    conversion.convert(source, folder, "hf")
    return folder


def _adapter(model: ModelConfig, names: Sequence[str], *, norms: bool = False) -> Adapter:
    """Random updates of rank 3, and norms that are not 1."""
    rng = np.random.default_rng(1)
    weights = [TARGETS[name] for name in names]
    factors: dict[tuple[Weight, int], Factors] = {}
    replaced = {}
    for (weight, layer), shape in matrix_shapes(model).items():
        if weight in weights:
            a, b = (
                (0.3 * rng.standard_normal(size)).astype(np.float32)
                for size in ((3, shape[1]), (shape[0], 3))
            )
            factors[weight, layer] = Factors(a, b, 2.0)
        elif weight.is_norm and norms:
            replaced[weight, layer] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return Adapter(Path("/adapter"), factors, replaced)


def _adapted(base: Path, names: Sequence[str], *, norms: bool = False) -> AdaptedSource:
    """A base with an adapter that was trained with another embedding."""
    opened = pretrained.open_source(base)
    merged = dataclasses.replace(opened.description, rope=RESONANT, context=128)
    adapter = _adapter(opened.description.model, names, norms=norms)
    return AdaptedSource(opened, adapter, merged)


def _logits(source: Any) -> np.ndarray:
    decoder, _ = pretrained.load(source)
    return np.asarray(jax.jit(lambda decoder, tokens: decoder(tokens))(decoder, TOKENS))


@pytest.mark.parametrize(
    ("family", "fields"),
    [("llama", {}), ("phi3", {}), ("qwen3", {"qk_norm": "head"})],
)
def test_what_is_written_is_read_on_either_base(
    family: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    """The original one, and one exported with the embedding, with the temperature in weights."""
    base = _base(tmp_path / "base", family, **fields)
    names = ("q_proj", "v_proj", "down_proj")  # of fused matrices, parts
    source = _adapted(base, names, norms=True)
    expected = _logits(source)
    conversion.convert_adapter(source, tmp_path / "peft")
    extended = tmp_path / "extended"
    assert main(["convert", f"--from={base}", f"--to={extended}", "--format=hf", *FLAGS]) == 0
    assert pretrained.describe(extended).extras.keys() == {"folded_temperature"}
    readme = (tmp_path / "peft" / "README.md").read_text()
    assert "--config.rope.scaling=yarn" in readme
    for each in (base, extended):
        found = _logits(pretrained.open_adapted(each, tmp_path / "peft"))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_ranks_and_alphas_by_pattern(tmp_path: Path) -> None:
    """As PEFT matches them: by the end of a module's name, the first one counts."""
    base = _base(tmp_path / "base", "llama")
    source = _adapted(base, ("q_proj", "o_proj"))
    key = next(key for key in source.adapter.factors if key[1] == 1)
    a, b, _ = source.adapter.factors[key]
    factors = {**source.adapter.factors, key: Factors(a[:2], b[:, :2], 0.5)}
    source.adapter = dataclasses.replace(source.adapter, factors=factors, rslora=True)
    conversion.convert_adapter(source, tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    name = "model.layers.1.self_attn.q_proj"
    assert config["rank_pattern"] == {name: 2}
    assert config["alpha_pattern"] == {name: pytest.approx(0.5 * 2**0.5)}
    found = pretrained.open_adapted(base, tmp_path / "peft").adapter.factors
    assert found.keys() == factors.keys()
    for each, expected in factors.items():
        assert found[each].scaling == pytest.approx(expected.scaling, rel=1e-8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and a PEFT folder."""
    folder = tmp_path_factory.mktemp("adapters")
    base = _base(folder / "base", "llama")
    conversion.convert_adapter(_adapted(base, ("q_proj",)), folder / "peft")
    return base, folder / "peft"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type='LOHA' is not implemented"),
        ({"use_dora": True}, "use_dora=True is not implemented; merge the adapter with PEFT"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa is not implemented"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"a_key_of_tomorrow": 1}, "a_key_of_tomorrow=1 is not implemented"),
        ({"r": 4}, "gives model.layers.0.self_attn.q_proj a rank of 4, but its weights have 3"),
        ({"lora_alpha": None}, "lora_alpha=None must be a number above 0"),
        ({"rank_pattern": {"(": 3}}, r"rank_pattern has '\('"),
    ],
)
def test_what_peft_has_and_we_have_not(
    changes: dict[str, Any], message: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base, peft = folders
    folder = shutil.copytree(peft, tmp_path / "peft")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        pretrained.open_adapted(base, folder)


_NAME = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("drop", "add", "message"),
    [
        (f"{_NAME}.lora_A.weight", {}, "lora_A and lora_B of .*q_proj do not make an update"),
        (None, {f"{_NAME}.lora_magnitude_vector": np.ones(32)}, "which is no weight of the base"),
        (None, {"base_model.model.lm_head.lora_A": np.ones(2)}, "which is no weight of the base"),
        (None, {f"{_NAME}.lora_B.weight": np.ones((31, 3))}, "damaged, or not of this base"),
    ],
)
def test_weights_that_do_not_fit(
    drop: str | None,
    add: dict[str, Any],
    message: str,
    folders: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    base, peft = folders
    folder = shutil.copytree(peft, tmp_path / "peft")
    tensors = load_file(folder / "adapter_model.safetensors") | add
    kept = {name: array for name, array in tensors.items() if name != drop}
    save_file(kept, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message):
        pretrained.open_adapted(base, folder)


def test_in_commands(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, peft = folders
    merged = tmp_path / "merged"
    words = ["convert", f"--from={base}", f"--to={merged}"]
    assert main([*words, f"--adapter={peft}"]) == 0
    np.testing.assert_allclose(
        _logits(merged), _logits(pretrained.open_adapted(base, peft)), rtol=1e-4, atol=1e-4
    )
    capsys.readouterr()
    for bad, message in (
        ([f"--adapter={base}"], "is no adapter: neither a PEFT folder with adapter_config.json"),
        (["--format=peft"], "has no adapter apart from its weights"),
        ([f"--adapter={peft}", "--format=peft", *FLAGS[:1], "--config.rope.factor=8"], "goes with"),
    ):
        assert main([*words[:2], f"--to={tmp_path / 'bad'}", *bad]) == 2
        assert message in capsys.readouterr().err
    assert main(["generate", f"--checkpoint={peft}", "--prompt=a"]) == 2
    assert "name both, as --checkpoint=BASE --adapter=" in capsys.readouterr().err


def test_a_tied_embedding_cannot_be_apart(tmp_path: Path) -> None:
    source = _adapted(_base(tmp_path / "base", "llama", tie_embeddings=True), ("q_proj",))
    replaced = {(WEIGHTS[0], 0): np.zeros((96, 32), np.float32)}
    source.adapter = dataclasses.replace(source.adapter, replaced=replaced)
    with pytest.raises(ValueError, match="is the output matrix too, which PEFT would leave"):
        conversion.convert_adapter(source, tmp_path / "peft")


@pytest.mark.heavy
@pytest.mark.peers
# PEFT asks transformers for a name that will be removed
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("family", "fields"), [("llama", {}), ("phi3", {}), ("qwen3", {"qk_norm": "head"})]
)
def test_peft_reads_ours_and_we_read_its(
    family: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    """The same logits on the base that `rrope convert` writes with the embedding."""
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForCausalLM

    base, extended = _base(tmp_path / "base", family, **fields), tmp_path / "extended"
    assert main(["convert", f"--from={base}", f"--to={extended}", "--format=hf", *FLAGS]) == 0

    def logits(model: Any) -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = model(torch.from_numpy(TOKENS).long()).logits.numpy()
        return found

    source = _adapted(base, tuple(TARGETS), norms=True)
    conversion.convert_adapter(source, tmp_path / "ours")
    model = AutoModelForCausalLM.from_pretrained(extended, dtype=torch.float32)
    theirs = logits(peft.PeftModel.from_pretrained(model, tmp_path / "ours"))
    ours = _logits(source)
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=2e-5 * np.abs(ours).max())

    model = AutoModelForCausalLM.from_pretrained(extended, dtype=torch.float32)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules="all-linear",
        rank_pattern={"o_proj": 2},
        alpha_pattern={"down_proj": 3},
        init_lora_weights=False,  # B is random, too
        modules_to_save=["input_layernorm"],
    )
    made = peft.get_peft_model(model, config)
    made.save_pretrained(tmp_path / "theirs")
    ours = _logits(pretrained.open_adapted(extended, tmp_path / "theirs"))
    np.testing.assert_allclose(ours, logits(made), rtol=1e-3, atol=2e-5 * np.abs(ours).max())
