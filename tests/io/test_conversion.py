"""Checkpoints of every format into every other, and what is refused."""

import contextlib
import dataclasses
import functools
import json
import logging
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from rrope_jax import rope
from rrope_jax.io import pretrained
from rrope_jax.io.conversion import WRITERS, Options, convert
from rrope_jax.io.description import Description
from rrope_jax.io.memory import DecoderSource
from rrope_jax.model import Decoder
from rrope_jax.rope import RopeSpec
from tests.io import tiny

FORMATS = list(WRITERS)
SUFFIX = {"gguf": ".gguf"}


def _weights(decoder: Decoder) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(decoder))
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}


def _assert_same_weights(one: Decoder, other: Decoder) -> None:
    ours, theirs = _weights(one), _weights(other)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("target_format", FORMATS)
@pytest.mark.parametrize("source_format", FORMATS)
def test_round_trips_are_bit_exact(
    source_format: str, target_format: str, tied: bool, tmp_path: Path
) -> None:
    made = tiny.decoder(tie_embeddings=tied)
    extras = {"bos_token_id": 1, "eos_token_id": 2}
    first = tiny.save(made, tmp_path / "a", source_format, extras=extras)
    convert(first, tmp_path / "b", target_format)
    back, description = pretrained.load(tmp_path / "b")
    _assert_same_weights(made, back)
    # all but what a format has no place for
    model = dataclasses.replace(description.model, initializer_range=tiny.MODEL.initializer_range)
    assert (model, description.rope) == (made.config, made.rope)
    assert (description.context, description.extras) == (tiny.CONTEXT, extras)


_EXTENDED: dict[str, Any] = {"factor": 4.0, "original_context": 64}
_LISTS: dict[str, Any] = {"short_factor": [1.0, 1.5, 2, 3, 4, 5], "original_context": 64}
_SPECS = {
    "none": {},
    "linear": {"scaling": "linear", "factor": 4.0},
    "ntk": {"scaling": "ntk", "factor": 4.0},
    "yarn": {"scaling": "yarn", **_EXTENDED},
    "yarn, other ramp": {"scaling": "yarn", "beta_fast": 8.0, "truncate": False, **_EXTENDED},
    "yarn of DeepSeek": {"scaling": "yarn", "mscale": 0.8, "mscale_all_dim": 0.5, **_EXTENDED},
    "llama3": {"scaling": "llama3", **_EXTENDED},
    "ntk_by_parts": {"scaling": "ntk_by_parts", **_EXTENDED},
    "part_ntk": {"scaling": "part_ntk", **_EXTENDED},
    "longrope": {"scaling": "longrope", "long_factor": _LISTS["short_factor"], **_LISTS},
    "proportional": {"scaling": "proportional", "partial_rotary_factor": 0.5},
    "partial": {"partial_rotary_factor": 0.5},
    "partial yarn": {"scaling": "yarn", "partial_rotary_factor": 0.5, **_EXTENDED},
    "temperature": {"attention_factor": 1.25},
}


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("resonance", [False, True])
@pytest.mark.parametrize("name", _SPECS)
def test_every_embedding_survives_other_runtimes_formats(
    name: str, resonance: bool, portable: bool, tmp_path: Path
) -> None:
    """Read back by what the file alone says, the model computes the same."""
    spec = RopeSpec(head_dim=12, resonance=resonance, **_SPECS[name])
    made = tiny.decoder(spec)
    expected = tiny.logits(made)
    for target_format in ("hf", "gguf"):
        path = tmp_path / target_format
        tiny.save(made, path, target_format, context=256, options=Options(portable=portable))
        back, description = pretrained.load(path)
        assert description.context == 256
        assert description.rope.resonance is (resonance or False)
        assert np.abs(tiny.logits(back) - expected).max() <= 3e-5 * np.abs(expected).max()
        if portable:
            assert rope.frequencies(description.rope).attention_factor == 1


def test_every_embedding_gives_other_logits() -> None:
    """Else the test above could not tell one from another."""
    found = [
        tiny.logits(tiny.decoder(RopeSpec(head_dim=12, resonance=resonance, **fields)))
        for fields in _SPECS.values()
        for resonance in (False, True)
    ]
    for index, one in enumerate(found):
        for other in found[:index]:
            assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()


def test_portable_folder_follows_the_recipe(tmp_path: Path) -> None:
    """Equal lists, equal lengths and no temperature: what vLLM and SGLang need, too."""
    spec = RopeSpec(head_dim=12, scaling="yarn", resonance=True, **_EXTENDED)
    tiny.save(tiny.decoder(spec), tmp_path / "hf", "hf", context=256)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    for dialect in ("rope_parameters", "rope_scaling"):
        keys = config[dialect]
        assert keys["rope_type"] == "longrope"
        assert keys["short_factor"] == keys["long_factor"]
        assert keys["factor"] == keys["attention_factor"] == 1.0
        assert keys["original_max_position_embeddings"] == 256
    assert config["max_position_embeddings"] == config["original_max_position_embeddings"] == 256
    theta = np.array([10000.0 ** (-index / 6) for index in range(6)])
    np.testing.assert_allclose(
        theta / np.array(keys["short_factor"]), rope.frequencies(spec).inv_freq, rtol=1e-12
    )


def test_temperature_is_folded_into_queries_and_keys_alone(tmp_path: Path) -> None:
    spec = RopeSpec(head_dim=12, scaling="yarn", **_EXTENDED)
    made = tiny.decoder(spec)
    tiny.save(made, tmp_path / "native", "hf", context=256)
    tiny.save(made, tmp_path / "lists", "hf", context=256, options=Options(portable=True))
    native, lists = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("native", "lists")
    )
    temperature = np.float32(0.1 * np.log(4) + 1)
    for name, weight in native.items():
        folded = "q_proj" in name or "k_proj" in name
        np.testing.assert_array_equal(lists[name], weight * temperature if folded else weight)


@pytest.mark.parametrize("target_format", ["hf", "gguf"])
@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 8), ("float16", 11)])
def test_half_precision(dtype: str, bits: int, target_format: str, tmp_path: Path) -> None:
    made = tiny.decoder()
    path = tiny.save(made, tmp_path / "a", target_format, options=Options(dtype=dtype))
    back, _ = pretrained.load(path)
    for name, array in _weights(back).items():
        expected = _weights(made)[name]
        assert np.abs(array - expected).max() <= 2.0**-bits * np.abs(expected).max()
    # what half precision holds goes on to any format without a further change
    convert(path, tmp_path / "b", "orbax")
    _assert_same_weights(back, pretrained.load(tmp_path / "b")[0])


def test_float16_overflow_names_the_weight(tmp_path: Path) -> None:
    made = nnx.clone(tiny.decoder())
    made.output[...] = made.output[...].at[3, 4].set(1e5)
    with pytest.raises(ValueError, match=r"lm_head\.weight holds 1e\+05.*float16"):
        tiny.save(made, tmp_path / "a", "hf", options=Options(dtype="float16"))
    assert list(tmp_path.iterdir()) == []


def test_shards(tmp_path: Path) -> None:
    made = tiny.decoder()
    tiny.save(made, tmp_path / "a", "hf", options=Options(shard_bytes=20_000))
    index = json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text())
    files = {path.name: path.stat().st_size for path in (tmp_path / "a").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == set(files)
    assert len(files) > 2
    _assert_same_weights(made, pretrained.load(tmp_path / "a")[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder."""
    return tiny.save(tiny.decoder(), tmp_path / "source", "hf")


def _edit_config(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not _ABSENT}))


_ABSENT = object()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "bloom"}, "model_type='bloom' is not implemented"),
        ({"model_type": ["llama"]}, r"model_type=\['llama'\] is not implemented"),
        ({"model_type": {"llama": 1}}, "model_type={'llama': 1} is not implemented"),
        ({"model_type": None}, "model_type=None is not implemented"),
        ({"eos_token_id": "</s>"}, "eos_token_id='</s>' must be a token id or a list of them"),
        ({"eos_token_id": [2, [3]]}, "must be a token id or a list of them"),
        ({"folded_temperature": "hot"}, "folded_temperature='hot' must be a number"),
        ({"attention_bias": True}, "attention_bias=True is not implemented"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"sliding_window": 4096}, "sliding_window=4096.*set the key to null"),
        ({"num_local_experts": 8}, "num_local_experts=8"),
        ({"quantization_config": {"bits": 4}}, "quantization_config.*convert the weights"),
        ({"rope_scaling": {"rope_type": "odd"}, "rope_parameters": None}, "rope_type='odd'"),
        ({"hidden_size": _ABSENT}, "has no hidden_size"),
        ({"num_attention_heads": 5}, "num_kv_heads=2 must divide num_heads=5"),
    ],
)
def test_config_that_is_not_ours(folder: Path, keys: dict[str, Any], message: str) -> None:
    _edit_config(folder, **keys)
    with pytest.raises(ValueError, match=message):
        pretrained.describe(folder)


def test_mistral_with_and_without_its_window(folder: Path) -> None:
    expected = pretrained.load(folder)[0]
    _edit_config(folder, model_type="mistral", sliding_window=None)
    _assert_same_weights(expected, pretrained.load(folder)[0])
    _edit_config(folder, model_type="mistral", sliding_window=_ABSENT)  # it has one by default
    description = pretrained.describe(folder)
    assert description.model.layer_types == ("sliding_attention",)
    assert description.model.sliding_window == 4096
    assert description.family == "mistral"


def test_absurd_number_of_layers(folder: Path) -> None:
    """It must not become a loop."""
    _edit_config(folder, num_hidden_layers=10**9)
    with pytest.raises(ValueError, match="21 weights, but by its config 1000000000 layers"):
        pretrained.load(folder)


_EditWeights = Callable[[dict[str, np.ndarray]], None]
_QUERY = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop(f"{_QUERY}.weight"), f"has no weight '{_QUERY}.weight'"),
        (lambda w: w.update({f"{_QUERY}.bias": np.ones(48)}), f"unknown weight '{_QUERY}.bias'"),
        (
            lambda w: w.update({"model.layers.0.self_attn.q_norm.weight": np.ones(12)}),
            "unknown weight .*q_norm",
        ),
        (
            lambda w: w.update({f"{_QUERY}.weight": np.ones((32, 48), np.float32)}),
            r"q_proj\.weight has shape \[32, 48\].*\[48, 32\]",
        ),
        (
            lambda w: w.update({f"{_QUERY}.weight": np.ones((48, 32), np.int8)}),
            "q_proj.weight' is of type I8",
        ),
    ],
)
def test_weights_that_do_not_fit(folder: Path, edit: _EditWeights, message: str) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file)
    for use in (pretrained.load, lambda source: convert(source, folder.parent / "to", "orbax")):
        with pytest.raises(ValueError, match=message):
            use(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["source"]


def test_tied_output_that_is_stored_all_the_same(tmp_path: Path) -> None:
    made = tiny.decoder(tie_embeddings=True)
    file = tiny.save(made, tmp_path / "a", "hf") / "model.safetensors"
    weights = load_file(file)
    embedding = weights["model.embed_tokens.weight"]
    save_file(weights | {"lm_head.weight": embedding.copy()}, file)
    _assert_same_weights(made, pretrained.load(tmp_path / "a")[0])
    save_file(weights | {"lm_head.weight": 2 * embedding}, file)
    with pytest.raises(ValueError, match="tie_word_embeddings is true, but lm_head"):
        pretrained.load(tmp_path / "a")


def test_tables_of_frequencies_in_old_checkpoints(folder: Path) -> None:
    file = folder / "model.safetensors"
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    expected = pretrained.load(folder)[0]
    save_file(load_file(file) | {name: np.ones(6, np.float32)}, file)
    _assert_same_weights(expected, pretrained.load(folder)[0])


def test_pickled_weights_are_never_read(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("the pickle was read",))

    import pickle

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"pickle \(pytorch_model\.bin\).*refused"):
        pretrained.load(folder)
    with pytest.raises(ValueError, match="pickled weights"):
        pretrained.load(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "name", ["../elsewhere.safetensors", "/etc/passwd", "sub/a.safetensors", ["a"], {}, 3, None]
)
def test_index_may_not_leave_its_folder(folder: Path, name: Any) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "elsewhere.safetensors")
    weights = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(weights, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="not in the folder itself"):
        pretrained.load(folder)


def test_a_part_of_a_folder_is_not_the_whole(folder: Path) -> None:
    name = "model-00001-of-00002.safetensors"
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ValueError, match=r"is part 1 of 2 of a model; copy the others"):
        pretrained.load(folder)
    weights = list(load_file(folder / name))
    index = {"weight_map": dict.fromkeys(weights, name) | {weights[0]: name.replace("1-", "2-")}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"lacks 'model-00002-of-00002\.safetensors'"):
        pretrained.load(folder)


@pytest.mark.parametrize("keep", [0, 5, 200, 60_000])
def test_truncated_safetensors(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged"):
        pretrained.load(folder)


def test_truncated_gguf(tmp_path: Path) -> None:
    """Wherever it ends, one message, and at once."""
    file = tiny.save(tiny.decoder(), tmp_path / "a.gguf", "gguf")
    data = file.read_bytes()
    for keep in [*range(4, 300, 7), *range(300, len(data), len(data) // 20), len(data) - 1]:
        file.write_bytes(data[:keep])
        with pytest.raises(ValueError, match="truncated"):
            pretrained.load(file)


def test_gguf_with_an_absurd_length(tmp_path: Path) -> None:
    """It must not become an allocation."""
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 2**62))
    with pytest.raises(ValueError, match="damaged"):
        pretrained.describe(file)


@functools.cache
def _gguf_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = tiny.save(tiny.decoder(), Path(folder) / "a.gguf", "gguf")
        return file.read_bytes()


@hypothesis.given(st.data())
def test_damaged_gguf_is_refused_or_read(data: st.DataObject) -> None:
    """A few wrong bytes in the header are a ValueError, or another model: never anything else."""
    damaged = bytearray(_gguf_bytes())
    header = damaged.index(b"output_norm.weight")
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(4, header))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.gguf"
        file.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            pretrained.open_source(file).check()


def test_damaged_orbax_folder(tmp_path: Path) -> None:
    folder = tiny.save(tiny.decoder(), tmp_path / "a", "orbax")
    data = max((folder / "params").rglob("*"), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        pretrained.load(folder)


def test_model_json_with_an_unknown_field(tmp_path: Path) -> None:
    folder = tiny.save(tiny.decoder(), tmp_path / "a", "orbax")
    file = folder / "model.json"
    value = json.loads(file.read_text())
    file.write_text(json.dumps(value | {"model": value["model"] | {"experts": 3}}))
    with pytest.raises(ValueError, match=r"model\.json.*experts"):
        pretrained.describe(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent", "does not exist"), ("empty", "is no checkpoint"), ("text", "is no checkpoint")],
)
def test_what_is_no_checkpoint(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("GGU")
    with pytest.raises(ValueError, match=message):
        pretrained.load(tmp_path / name)


@pytest.mark.parametrize("target_format", FORMATS)
def test_failure_on_the_way_leaves_nothing(target_format: str, tmp_path: Path) -> None:
    class Failing(DecoderSource):
        def matrix(self, weight: Any, layer: int, part: Any = None) -> Any:
            if weight.path.endswith("down"):
                raise OSError(28, "No space left on device")
            return super().matrix(weight, layer, part)

    made = tiny.decoder()
    source = Failing(made, Description(made.config, made.rope, 64))
    with pytest.raises(OSError, match="No space"):
        convert(source, tmp_path / "a", target_format)
    assert list(tmp_path.iterdir()) == []
    old = tiny.save(made, tmp_path / "a", "gguf").read_bytes()
    with pytest.raises(OSError, match="No space"):
        convert(source, tmp_path / "a", target_format, overwrite=True)
    assert (tmp_path / "a").read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_leftovers_of_a_killed_process_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".a.partial" / "new").mkdir(parents=True)
    (tmp_path / ".a.partial" / "new" / "model.json").write_text("half")
    tiny.save(tiny.decoder(), tmp_path / "a", "gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("target_format", FORMATS)
def test_overwriting(target_format: str, tmp_path: Path) -> None:
    one, other = tiny.decoder(), tiny.decoder(rope=None, d_ff=24)
    target = tiny.save(one, tmp_path / "a", "hf")
    source = DecoderSource(other, Description(other.config, other.rope, 64))
    with pytest.raises(ValueError, match=r"exists.*--overwrite"):
        convert(source, target, target_format)
    _assert_same_weights(one, pretrained.load(target)[0])
    convert(source, target, target_format, overwrite=True)
    _assert_same_weights(other, pretrained.load(target)[0])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_only_checkpoints_are_overwritten(tmp_path: Path) -> None:
    source = tiny.save(tiny.decoder(), tmp_path / "a", "hf")
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not a converted checkpoint"):
        convert(source, home, "orbax", overwrite=True)
    for target in (source, source / "inside", tmp_path):
        with pytest.raises(ValueError, match="contain each other"):
            convert(source, target, "orbax", overwrite=True)
    assert (home / "thesis.txt").read_text() == "years of work"
    (home / "thesis.txt").unlink()
    convert(source, home, "orbax", overwrite=True)  # an empty folder is nobody's


@pytest.mark.parametrize("names", [["config.json"], ["tree/a", "metadata/metadata"]])
def test_results_and_trainings_are_not_overwritten(names: list[str], tmp_path: Path) -> None:
    """A workdir has a config.json, too; one checkpoint of a training is read, never replaced."""
    source = tmp_path / "a"
    tiny.save(tiny.decoder(), source, "hf")
    for name in [*names, "results.json"]:
        file = tmp_path / "run" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    with pytest.raises(ValueError, match="not a converted checkpoint"):
        convert(source, tmp_path / "run", "orbax", overwrite=True)
    assert (tmp_path / "run" / "results.json").read_text() == "{}"


def test_tokens_that_a_config_lacks(folder: Path, tmp_path: Path) -> None:
    """Some LLaMA configs have -1, and lists may be empty."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"pad_token_id": -1, "eos_token_id": [], "bos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))
    convert(folder, tmp_path / "model.gguf", "gguf")
    found = pretrained.describe(tmp_path / "model.gguf").extras
    assert found["bos_token_id"] == 1
    assert not {"pad_token_id", "eos_token_id"} & found.keys()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"activation": "relu"}, "activation='relu'.*only 'swiglu'"),
        ({"attention_scale": 1.0, "qk_norm": "head"}, "qk_norm='head'.*only 'none'"),
    ],
)
def test_models_that_other_runtimes_do_not_have(
    overrides: dict[str, Any], message: str, tmp_path: Path
) -> None:
    made = tiny.decoder(**overrides)
    for target_format in ("hf", "gguf"):
        with pytest.raises(ValueError, match=message):
            tiny.save(made, tmp_path / "a", target_format)
    back, _ = pretrained.load(tiny.save(made, tmp_path / "a", "orbax"))
    _assert_same_weights(made, back)


@pytest.mark.parametrize("target_format", ["hf", "gguf"])
def test_models_that_only_another_family_has(target_format: str, tmp_path: Path) -> None:
    """Scales that LLaMA does not have, and Granite has."""
    made = tiny.decoder(attention_scale=1.0, logit_scale=0.3, residual_scale=0.7)
    folder = tiny.save(made, tmp_path / "a", target_format, family="llama")
    back, description = pretrained.load(folder)
    assert description.family == "granite"
    unstored = {"initializer_range": made.config.initializer_range}
    assert dataclasses.replace(back.config, **unstored) == made.config
    _assert_same_weights(made, back)


_DYNAMIC = RopeSpec(head_dim=12, scaling="dynamic_ntk", **_EXTENDED)
_TWO_LISTS = RopeSpec(head_dim=12, scaling="longrope", long_factor=[2.0] * 6, factor=4.0, **_LISTS)


@pytest.mark.parametrize(
    ("spec", "target_format", "options", "message"),
    [
        (_DYNAMIC, "gguf", Options(), "other frequencies at every length"),
        (_DYNAMIC, "hf", Options(portable=True), "other frequencies at every length"),
        (_TWO_LISTS, "gguf", Options(), "no single list"),
        (RopeSpec(head_dim=12), "orbax", Options(portable=True), "portable=True has no effect"),
        (RopeSpec(head_dim=12), "orbax", Options(dtype="float16"), "dtype='float16' has no effect"),
    ],
)
def test_embeddings_that_a_format_does_not_have(
    spec: RopeSpec, target_format: str, options: Options, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.save(tiny.decoder(spec), tmp_path / "a", target_format, options=options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spec", [_DYNAMIC, _TWO_LISTS])
def test_embeddings_by_length_stay_so_in_a_folder(spec: RopeSpec, tmp_path: Path) -> None:
    tiny.save(tiny.decoder(spec), tmp_path / "a", "hf", context=256)
    found = pretrained.describe(tmp_path / "a").rope
    for length in (32, 200):
        for name in ("inv_freq", "attention_factor"):
            np.testing.assert_allclose(
                getattr(rope.frequencies(found, length), name),
                getattr(rope.frequencies(spec, length), name),
                rtol=1e-12,
            )


def test_dialects_of_both_transformers(folder: Path) -> None:
    """Each of the two kinds of keys alone describes the model."""
    expected = pretrained.describe(folder)
    v5, v4 = "rope_parameters", ("rope_theta", "rope_scaling")
    for absent in ([v5], v4):
        shutil.copytree(folder, folder.parent / absent[0])
        _edit_config(folder.parent / absent[0], **dict.fromkeys(absent, _ABSENT))
        assert pretrained.describe(folder.parent / absent[0]) == expected


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="dtype='int8' is unknown"):
        Options(dtype="int8")
    with pytest.raises(ValueError, match="shard_bytes=0"):
        Options(shard_bytes=0)


def test_load_overrides(folder: Path) -> None:
    spec = RopeSpec(head_dim=12, scaling="ntk", factor=2.0)
    loaded, description = pretrained.load(
        folder, rope=spec, model={"compute_dtype": "bfloat16", "remat": "full"}
    )
    assert loaded.rope == description.rope == spec
    assert loaded.config == description.model
    assert (loaded.config.compute_dtype, loaded.config.remat) == ("bfloat16", "full")
    assert all(array.dtype == np.float32 for array in _weights(loaded).values())
    with pytest.raises(ValueError, match="d_ff=3 cannot be changed"):
        pretrained.load(folder, model={"d_ff": 3})


def test_unread_keys_are_named_in_the_log(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    _edit_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "odd": 1})
    with caplog.at_level(logging.WARNING):
        pretrained.describe(folder)
    assert "odd" in caplog.text
