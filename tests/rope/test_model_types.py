"""What configs of every model type of transformers mean, as transformers computes it."""

import copy
import importlib
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from rrope_jax import rope

_SIZES = {"hidden_size": 1024, "num_attention_heads": 8}
_LENGTHS = {"max_position_embeddings": 8192}
_SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"type": "linear", "factor": 4.0},
    "dynamic": {"type": "dynamic", "factor": 4.0},
    "yarn": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
}
# What is added to a config that has its type and sizes alone.
_VARIANTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a base": {"rope_theta": 54321.0},
    "a whole head": {"head_dim": 64, "rope_theta": 54321.0},
    "another base in some layers": {"rope_local_base_freq": 12345.0, "local_rope_theta": 12345.0},
    "layer types": {
        **_LENGTHS,
        "rope_parameters": {
            "full_attention": {**_SCALINGS["yarn"], "rope_theta": 54321.0},
            "sliding_attention": {"rope_type": "default"},
        },
    },
    **{name: {**_LENGTHS, "rope_scaling": scaling} for name, scaling in _SCALINGS.items()},
}
_LAYER_TYPES = ("full_attention", "sliding_attention")


def _rotary_classes(config_class: type) -> Iterator[type]:
    """The modules of transformers that compute frequencies from such a config."""
    package, _, name = config_class.__module__.rpartition(".")
    try:
        module = importlib.import_module(
            f"{package}.{name.replace('configuration_', 'modeling_', 1)}"
        )
    except ImportError:
        return
    for found, value in vars(module).items():
        if not (inspect.isclass(value) and value.__module__ == module.__name__):
            continue
        parameters = list(inspect.signature(value.__init__).parameters.values())
        takes_config = len(parameters) > 1 and parameters[1].name == "config"
        if "Rotary" in found and takes_config and _is_for(parameters[1], config_class):
            yield value


def _is_for(parameter: inspect.Parameter, config_class: type) -> bool:
    annotation = parameter.annotation
    named = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return annotation is inspect.Parameter.empty or config_class.__name__ in named


def _tables(config_class: type, make: Callable[[], Any]) -> list[tuple[str, np.ndarray, float]]:
    """Layer type, frequencies and attention factor of each kind of layer of a config."""
    import torch

    found = []
    for rotary in _rotary_classes(config_class):
        embedding = rotary(make())
        tensors = {**dict(embedding.named_buffers()), **vars(embedding)}
        for name, value in tensors.items():
            wanted = name.endswith("inv_freq") and "original" not in name
            if wanted and isinstance(value, torch.Tensor):
                layer_type = next((each for each in _LAYER_TYPES if each in name), "full_attention")
                scaling = getattr(embedding, name.replace("inv_freq", "attention_scaling"), 1.0)
                found.append((layer_type, value.detach().double().numpy(), scaling))
    return found


def _differs(config: dict[str, Any], tables: list[tuple[str, np.ndarray, float]]) -> str:
    """Empty where a config is read as these tables say, or refused."""
    try:
        spec = rope.from_hf(config)
    except ValueError as error:
        return "a message of several lines" if "\n" in str(error) else ""
    for layer_type, inv_freq, scaling in tables:
        ours = rope.frequencies(spec.of(layer_type))
        if inv_freq.shape != ours.inv_freq.shape:
            return f"{inv_freq.size} features, read as {ours.inv_freq.size}"
        if not np.allclose(inv_freq, ours.inv_freq, rtol=1e-5, atol=1e-30):
            return f"{inv_freq[:3]}, read as {ours.inv_freq[:3]}"
        if not np.isclose(scaling, ours.attention_factor, rtol=1e-5):
            return f"attention factor {scaling}, read as {ours.attention_factor}"
    return ""


def _config_classes() -> Iterator[tuple[str, type]]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    for name in sorted(CONFIG_MAPPING_NAMES):
        try:
            yield name, CONFIG_MAPPING[name]
        except (ImportError, AttributeError, ValueError, KeyError):
            continue


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """Transformers warns of what it leaves out of configs that are made up."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_default_configs_mean_what_transformers_computes() -> None:
    different, compared = {}, 0
    for name, config_class in _config_classes():
        try:
            config = config_class().to_dict()
            tables = _tables(config_class, config_class)
        except Exception:  # what transformers cannot make is not compared
            continue
        compared += bool(tables)
        if reason := _differs(config, tables):
            different[name] = reason
    assert "\n".join(f"{name}: {reason}" for name, reason in different.items()) == ""
    assert compared > 150


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", _VARIANTS)
def test_what_configs_leave_out_means_what_transformers_computes(variant: str) -> None:
    different, compared = {}, 0
    for name, config_class in _config_classes():
        config = {"model_type": name, **_SIZES, **_VARIANTS[variant]}

        def make(config_class: Any = config_class, config: dict[str, Any] = config) -> Any:
            return config_class.from_dict(copy.deepcopy(config))  # which it changes

        try:
            tables = _tables(config_class, make)
        except Exception:  # what transformers cannot make is not compared
            continue
        compared += bool(tables)
        if reason := _differs(config, tables):
            different[name] = reason
    assert "\n".join(f"{name}: {reason}" for name, reason in different.items()) == ""
    assert compared > 100
