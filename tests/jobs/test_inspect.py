"""`rrope inspect` as a user runs it."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from rrope_jax.__main__ import main
from rrope_jax.inspection.runtimes import RELEASES
from rrope_jax.rope import RopeSpec, frequencies
from tests.io import tiny
from tests.jobs.tiny_checkpoint import write_checkpoint

LLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_hidden_layers": 16,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


def write(folder: Path, config: dict[str, Any]) -> Path:
    """Writes a config.json and returns the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def inspect(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What `--json` prints."""
    assert main(["inspect", str(path), "--json", *words]) == 0
    results: dict[str, Any] = json.loads(capsys.readouterr().out)
    return results


@pytest.mark.parametrize("name", ["", "config.json"])
def test_a_config_without_weights(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shape of Llama 3.2 1B."""
    (found,) = inspect(write(tmp_path, LLAMA) / name, capsys)["layer_types"].values()
    spec = RopeSpec(head_dim=64, theta=5e5, scaling="llama3", factor=32.0, original_context=8192)
    assert found["wavelengths"] == frequencies(spec).wavelengths.tolist()
    stated = {
        "scaling": "llama3",
        "theta": 5e5,
        "rotary_dim": 64,
        "attention_factor": 1.0,
        "window": None,
        "original_context": 8192,
        "context": 131072,
        "layers": list(range(16)),
        "keys_not_read": {},
    }
    assert {key: found[key] for key in stated} == stated
    assert found["keys_read"]["rope_theta"] == ["theta"]
    assert found["keys_read"]["rope_scaling.factor"] == ["factor"]
    assert found["keys_read"]["max_position_embeddings"] == ["context"]
    assert found["runtimes"].keys() == RELEASES.keys()
    assert found["runtimes"]["vLLM"] == "same"
    assert "8, 1, 4 and 8192" in found["runtimes"]["MaxText"]  # factor 32 cannot be said there


def test_keys_without_effect_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scaling = {"rope_type": "linear", "factor": 4.0, "beta_fast": 48.0}
    config = {**LLAMA, "rope_scaling": scaling, "rope_theta": 1e4, "max_window_layers": 3}
    (found,) = inspect(write(tmp_path, config), capsys)["layer_types"].values()
    assert found["keys_not_read"] == {"rope_scaling.beta_fast": 48.0, "max_window_layers": 3}


def test_numbers_that_json_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python reads and writes Infinity and NaN; other readers of JSON do not."""
    config = {**LLAMA, "max_window_layers": float("inf")}
    (found,) = inspect(write(tmp_path, config), capsys)["layer_types"].values()
    assert found["keys_not_read"] == {"max_window_layers": None}


def test_an_architecture_that_the_decoder_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        **LLAMA,
        "model_type": "qwen3_moe",
        "num_experts": 128,
        "rope_scaling": None,
        "max_position_embeddings": 40960,
    }
    (found,) = inspect(write(tmp_path, config), capsys)["layer_types"].values()
    assert (found["theta"], found["scaling"], found["context"]) == (5e5, "none", 40960)
    read_so = {runtime for runtime, says in found["runtimes"].items() if says != "not checked"}
    assert read_so == {"transformers 5"}  # where every type is compared


def test_layers_of_an_unknown_architecture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Linear attention has no positions to describe; a 0 is a layer without rotation."""
    config = {
        **LLAMA,
        "model_type": "somebodys_own",
        "num_hidden_layers": 4,
        "layer_types": [*["linear_attention"] * 2, "sliding_attention", "full_attention"],
        "sliding_window": 128,
        "no_rope_layers": [1, 1, 1, 0],
    }
    path = write(tmp_path, config)
    results = inspect(path, capsys)
    found = results["layer_types"]
    assert {name: each["layers"] for name, each in found.items()} == {
        "sliding_attention": [2],
        "nope": [3],
    }
    assert (found["sliding_attention"]["window"], found["nope"]["window"]) == (128, None)
    assert (found["nope"]["rotary_dim"], found["nope"]["wavelengths"]) == (0, [])
    assert "2 layers are linear_attention, which is not described here" in results["notes"]
    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("nope: 1 layer (3)")
    assert lines[at + 1].split() == ["rotation", "none", "layer_types,", "no_rope_layers"]


def test_a_quantized_model_of_a_known_family(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**LLAMA, "model_type": "mistral", "rope_scaling": None, "sliding_window": 4096}
    quantized = {**config, "quantization_config": {"quant_method": "awq", "bits": 4}}
    results = inspect(write(tmp_path, quantized), capsys)
    assert list(results["layer_types"]) == ["sliding_attention"]
    assert len(results["layer_types"]["sliding_attention"]["layers"]) == 16
    assert "quantization_config" in results["notes"][0]


def test_the_language_model_of_a_multimodal_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = inspect(write(tmp_path, {"model_type": "other", "text_config": LLAMA}), capsys)
    assert results["layer_types"]["full_attention"]["scaling"] == "llama3"
    assert "text_config" in results["notes"][-1]


@pytest.mark.parametrize("target", ["gguf", "hf", "orbax"])
def test_checkpoints_of_all_formats(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = RopeSpec(head_dim=12, scaling="yarn", factor=4.0, original_context=tiny.CONTEXT)
    name = "model.gguf" if target == "gguf" else "model"
    path = tiny.save(tiny.decoder(spec), tmp_path / name, target, context=4 * tiny.CONTEXT)
    (found,) = inspect(path, capsys)["layer_types"].values()
    # GGUF has numbers of 32 bits
    assert found["wavelengths"] == pytest.approx(frequencies(spec).wavelengths.tolist(), rel=1e-6)
    assert found["attention_factor"] == pytest.approx(frequencies(spec).attention_factor, rel=1e-6)
    assert (found["scaling"], found["original_context"]) == ("yarn", tiny.CONTEXT)
    assert (found["context"], found["layers"]) == (4 * tiny.CONTEXT, [0, 1])
    keys = {  # in both places, for two releases of transformers
        "hf": {"rope_parameters.factor", "rope_scaling.factor"},
        "orbax": {"rope.factor"},
        "gguf": {"llama.rope.scaling.factor"},
    }[target]
    assert keys <= {key for key, says in found["keys_read"].items() if "factor" in says}
    assert found["runtimes"]["llama.cpp"] == "same"


def test_a_training_workdir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = inspect(write_checkpoint(tmp_path / "run"), capsys)
    assert results["format"] == "orbax"
    assert results["layer_types"]["full_attention"]["scaling"] == "none"


def test_an_architecture_of_gguf_that_the_decoder_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen3moe")
    writer.add_block_count(3)
    writer.add_context_length(40960)
    writer.add_key_length(128)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(32768)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    results = inspect(tmp_path / "model.gguf", capsys)
    (found,) = results["layer_types"].values()
    stated = (found["scaling"], found["theta"], found["original_context"], found["layers"])
    assert stated == ("yarn", 1e6, 32768, None)
    assert found["keys_read"]["qwen3moe.rope.freq_base"] == ["theta"]
    assert "does not run this model" in results["notes"][0]
    assert "rope.scaling" in found["runtimes"]["transformers 5"]  # which does not read it


def test_a_window_in_all_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mistral 7B 0.1."""
    config = {**LLAMA, "model_type": "mistral", "rope_scaling": None, "sliding_window": 4096}
    results = inspect(write(tmp_path, config), capsys)
    (found,) = results["layer_types"].values()
    assert list(results["layer_types"]) == ["sliding_attention"]
    assert (found["window"], len(found["layers"])) == (4096, 16)
    assert found["keys_read"]["sliding_window"] == ["window"]
    assert "writes no window" in found["runtimes"]["llama.cpp"]


def test_two_embeddings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shape of OLMo 3 7B: YaRN in every fourth layer, a window in the others."""
    config = {
        **LLAMA,
        "model_type": "olmo3",
        "head_dim": None,
        "hidden_size": 4096,
        "num_key_value_heads": 32,
        "max_position_embeddings": 65536,
        "sliding_window": 4096,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
        },
    }
    path = write(tmp_path, config)
    found = inspect(path, capsys)["layer_types"]
    full, sliding = found["full_attention"], found["sliding_attention"]
    assert (full["scaling"], full["window"], full["layers"]) == ("yarn", None, [3, 7, 11, 15])
    assert (sliding["scaling"], sliding["window"]) == ("none", 4096)
    plain = RopeSpec(head_dim=128, theta=5e5)
    assert sliding["wavelengths"] == frequencies(plain).wavelengths.tolist()
    assert full["wavelengths_without_scaling"] == sliding["wavelengths"]
    assert full["keys_read"]["rope_scaling.factor"] == ["factor"]
    assert "rope_scaling.factor" not in sliding["keys_read"]
    assert sliding["keys_read"]["sliding_window"] == ["window"]
    assert "sliding_window" not in full["keys_read"]
    assert "all layers" in sliding["runtimes"]["MaxText"]
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "sliding_attention: 12 layers (0-2, 4-6, 8-10, 12-14)" in shown
    assert "\n  vLLM               same\n" in shown


def test_a_temperature_that_grows_with_the_position(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ministral 3."""
    config = {
        **LLAMA,
        "model_type": "ministral3",
        "rope_theta": None,
        "rope_scaling": None,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
            "llama_4_scaling_beta": 0.1,
        },
    }
    path = write(tmp_path, config)
    (found,) = inspect(path, capsys)["layer_types"].values()
    assert found["rope"]["llama_4_scaling_beta"] == 0.1
    assert "scaling" in found["keys_read"]["rope_parameters.rope_type"]
    assert found["runtimes"]["transformers 4.57"] == "refused: it has no Ministral 3"
    assert found["keys_read"]["rope_parameters.llama_4_scaling_beta"] == ["llama_4_scaling_beta"]
    plain = frequencies(RopeSpec(head_dim=64, theta=1e6)).wavelengths
    assert found["wavelengths_without_scaling"] == plain.tolist()
    assert main(["inspect", str(path)]) == 0
    assert "position temperature" in capsys.readouterr().out


def test_layers_of_ours_that_no_family_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No other runtime can have them, which is said once, and no table of runtimes is printed."""
    spec = RopeSpec(
        head_dim=12,
        theta=1e6,
        scaling="linear",
        factor=8.0,
        sliding_attention=RopeSpec(head_dim=12),
    )
    layers = {"layer_types": ("sliding_attention", "full_attention"), "sliding_window": 8}
    path = tiny.save(tiny.decoder(spec, **layers), tmp_path / "model", "orbax")
    results = inspect(path, capsys)
    assert list(results["layer_types"]) == ["sliding_attention", "full_attention"]
    assert results["layer_types"]["sliding_attention"]["theta"] == 1e4
    assert "no other runtime" in results["notes"][0]
    assert main(["inspect", str(path)]) == 0
    assert "\nruntimes" not in capsys.readouterr().out


def test_against_the_plain_frequencies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a runtime that drops the scaling computes, in float32 and once for each half."""
    plain = np.float32(5e5) ** (-np.arange(0, 64, 2, dtype=np.float32) / 64)
    np.save(tmp_path / "theirs.npy", np.concatenate([plain, plain]))
    path = write(tmp_path / "model", LLAMA)
    results = inspect(path, capsys, f"--against={tmp_path / 'theirs.npy'}")
    (one,) = results["layer_types"]["full_attention"]["against"]
    assert not one["same"]
    assert one["is_also"] == "this embedding without its scaling"
    assert one["largest_difference"] == pytest.approx(31, rel=1e-5)  # the slowest: times 32


def test_text_names_the_layers_and_the_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(write(tmp_path, LLAMA))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "full_attention: 16 layers (0-15)" in lines
    assert any(line.split() == ["theta", "500,000", "rope_theta"] for line in lines)
    assert "every key about positions was read" in lines
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in RELEASES)


def test_report_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, plot = write(tmp_path / "model", LLAMA), tmp_path / "plot.png"
    words = [f"--workdir={tmp_path / 'run'}", f"--plot={plot}"]
    assert main(["inspect", str(path), *words]) == 0
    written = {file.name for file in (tmp_path / "run").iterdir()}
    assert written >= {"results.json", "report.md", "wavelengths.png"}
    assert plot.read_bytes() == (tmp_path / "run" / "wavelengths.png").read_bytes()
    assert plot.read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| theta | 500,000 | rope_theta |" in report
    assert "https://github.com/vllm-project/vllm/blob/v0.33.0/" in report


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "cannot be read as JSON"),
        ("[]", "must hold a JSON object"),
        ('{"model_type": "llama"}', "head_dim is missing"),
        ('{"head_dim": 64, "rope_scaling": {"rope_type": "yearn"}}', "rope_type='yearn'"),
        ('{"head_dim": 64, "rope_theta": "big"}', "rope_theta='big'"),
        ('{"head_dim": 64, "position_embedding_type": "alibi"}', "alibi"),
    ],
)
def test_damaged_configs(
    content: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(content)
    assert main(["inspect", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rrope inspect: --path: ")
    assert expected in line


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.ones((2, 2)), "float64[2, 2]"),
        (np.array([1.0, np.nan]), "not frequencies"),
        (np.array(["a"]), "vector of frequencies"),
        (np.linspace(1, 2, 31), "31 frequencies, and full_attention has 32"),
        (b"not an array", "cannot be read as .npy"),
    ],
)
def test_files_to_compare_that_cannot_be(
    array: Any, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "theirs.npy"
    if isinstance(array, bytes):
        file.write_bytes(array)
    else:
        np.save(file, array)
    path = write(tmp_path / "model", LLAMA)
    assert main(["inspect", str(path), f"--against={file}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["absent"], "absent does not exist"),
        (["one", "two"], "unexpected argument 'two'"),
        (["one", "--plot=plot.jpg"], "--plot=plot.jpg"),
        (["one", "--against=absent.npy"], "absent"),
        (["hf://bucket/model"], "is a URL"),
    ],
)
def test_bad_usage(
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "one", LLAMA)
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
