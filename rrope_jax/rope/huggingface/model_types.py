"""Defaults of each `model_type` for the RoPE keys that a config.json leaves out.

Values are those of the config classes of transformers 5.24; those of `chatglm` are from its script
for conversion to GLM. A type in none of the tables is accepted if its config states the base.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class SlidingLayers:
    """How the keys of transformers 4 describe the layers with a sliding window of one type.

    Attributes:
      theta: the default of their base.
      key: the key of their base; None if they have that of the full-attention layers.
      scaled: whether `rope_scaling` applies to them too, not only to full-attention layers.
    """

    theta: float
    key: str | None = None
    scaled: bool = False


@dataclasses.dataclass(frozen=True)
class ModelType:
    """The default RoPE values of one type.

    Attributes:
      theta: `rope_theta`.
      share: `partial_rotary_factor`.
      head_dim: None for hidden_size / num_attention_heads.
      rotary_dim: number of rotated dimensions, for types that state it instead of a share.
      qk_rope_head_dim: size of a head's rotated part, if it is a separate array (DeepSeek).
      original_context: `original_max_position_embeddings`, where there is a default.
      only_longrope: whether `longrope` is the only scaling (Phi-3).
      position_temperature: whether `llama_4_scaling_beta` is read.
      sliding: the embedding of layers with a sliding window, for types that have two.
    """

    theta: float = 10000.0
    share: float = 1.0
    head_dim: int | None = None
    rotary_dim: int | None = None
    qk_rope_head_dim: int | None = None
    original_context: int | None = None
    only_longrope: bool = False
    position_temperature: bool = False
    sliding: SlidingLayers | None = None


LLAMA = ModelType()
_GEMMA3 = SlidingLayers(10000.0, "rope_local_base_freq")
_MODERNBERT = SlidingLayers(10000.0, "local_rope_theta", scaled=True)
SLIDING_KEYS: Mapping[str, SlidingLayers] = {
    "rope_local_base_freq": _GEMMA3,
    "local_rope_theta": _MODERNBERT,
}
"""Keys that say that layers with a sliding window have a base of their own."""


def _rows(*rows: tuple[ModelType, str]) -> dict[str, ModelType]:
    return {name: row for row, names in rows for name in names.split()}


MODEL_TYPES: Mapping[str, ModelType] = _rows(
    (
        LLAMA,
        "arcee aria_text blt_patcher chameleon dbrx diffllama doge dots1 "
        "esmc eurobert falcon falcon_h1 glm4v_text glm_image_text glm_ocr_text gpt_neox_japanese "
        "granite granite4_vision_text granite_docling_text granite_swa granitemoe "
        "granitemoe_swa granitemoehybrid granitemoeshared hunyuan_v1_dense hunyuan_v1_moe "
        "hunyuan_vl_text hyperclovax idefics jais2 llama ministral mistral nanochat olmo olmo2 "
        "olmo_hybrid olmoe qwen2 qwen2_moe qwen3_moe starcoder2 "
        "voxtral_realtime_text zamba2",
    ),
    (ModelType(original_context=4096, only_longrope=True), "phi3 phi4_multimodal"),
    (ModelType(rotary_dim=64), "codegen gptj"),
    (ModelType(share=0.25), "gpt_neox stablelm"),
    (ModelType(share=0.25, head_dim=256), "qwen3_5_moe_text qwen3_5_text qwen3_next"),
    (
        ModelType(share=0.5),
        "bamba chatglm glm4_moe glm4v_moe_text nemotron persimmon phi recurrent_gemma",
    ),
    (ModelType(share=0.5, head_dim=128), "glm glm4"),
    (ModelType(share=0.9), "moonshine"),
    (ModelType(qk_rope_head_dim=32), "axk2 minicpm3"),
    (
        ModelType(qk_rope_head_dim=64),
        "axk1 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa hy_v4 hy_v4_vl_text "
        "sarvam_mla youtu",
    ),
    (
        ModelType(head_dim=128),
        "hrm_text internlm3 iquestcoder jetmoe lara_mini molmo2_text qwen3 seed_oss",
    ),
    (ModelType(head_dim=256), "gemma gemma2 qwen4_exp_text t5_gemma_module vaultgemma"),
    (ModelType(theta=1000.0), "nomic_bert"),
    (ModelType(theta=2e4), "jina_embeddings_v3"),
    (ModelType(theta=1e5, head_dim=128), "helium"),
    (ModelType(theta=160000.0), "gte"),
    (
        ModelType(theta=5e5),
        "bitnet blt blt_global_transformer blt_local_decoder blt_local_encoder cohere csm "
        "csm_depth_decoder_model ernie4_5_moe evolla exaone flex_olmo mllama_text_model "
        "qwen3_vl_moe_text",
    ),
    (ModelType(theta=5e5, head_dim=128), "ernie4_5 paddleocr_vl_text qwen3_vl_text"),
    (
        ModelType(theta=1e6),
        "emu3_text_model lfm2 lfm2_moe minimax mixtral phimoe qwen2_5_omni_text qwen2_5_vl_text "
        "qwen2_vl_text qwen3_omni_moe_text",
    ),
    (ModelType(theta=1e6, head_dim=128), "qwen2_5_omni_talker solar_open"),
    (ModelType(theta=5e6, head_dim=128), "minimax_m2 minimax_m3_vl_text"),
    (ModelType(theta=6e6, qk_rope_head_dim=64), "bailing_hybrid"),
    (ModelType(theta=8e6, head_dim=64), "sarvam_moe"),
    (ModelType(theta=1e7, qk_rope_head_dim=64), "longcat_flash"),
    (ModelType(theta=11158840.0, head_dim=128), "hy_v3"),
)

# Types that scale their frequencies unless their config says otherwise.
SCALED: Mapping[str, ModelType] = _rows(
    (ModelType(theta=12e6), "apertus apertus1p5_text"),
    (ModelType(theta=1e6, head_dim=128), "cwm"),
    (ModelType(head_dim=128), "higgs_audio_v2"),
    (ModelType(head_dim=128, position_temperature=True), "ministral3"),
    (ModelType(theta=150000.0, head_dim=64), "gpt_oss openai_privacy_filter"),
)

# Types whose layers have different embeddings: the values of the full-attention layers. Those
# without `sliding` state everything in `rope_parameters`, by layer type.
LAYERED: Mapping[str, ModelType] = _rows(
    (
        ModelType(theta=1e6, head_dim=256, sliding=_GEMMA3),
        "gemma3_text gemma3n_text t5gemma2_decoder t5gemma2_text",
    ),
    (ModelType(theta=160000.0, sliding=_MODERNBERT), "modernbert modernbert-decoder"),
    (ModelType(theta=5e5, sliding=SlidingLayers(5e5)), "olmo3"),
    (ModelType(theta=5e5, head_dim=128), "mellum"),
    (ModelType(theta=5e5, share=0.5, head_dim=128), "laguna"),
    (ModelType(theta=5e6, share=0.334, head_dim=192), "mimo_v2_flash"),
    (ModelType(theta=5e6, share=0.5, head_dim=128), "zaya"),
    (ModelType(theta=1e7, head_dim=256), "dory"),
    (ModelType(theta=1e6, share=0.25, head_dim=64), "neomme"),
    (ModelType(theta=2560000.0, head_dim=128), "ultrabert"),
)

# Types whose layers differ in ways that no RopeSpec expresses, or that use another embedding.
REFUSED: Mapping[str, str] = {
    name: reason
    for reason, names in {
        "has heads of another size in some of its layers": "diffusion_gemma_text gemma4_text "
        "gemma4_unified_text embedding_gemma2_text lfm3 deepseek_v4 dots3_note_text step3p5",
        "leaves some of its layers without rotation": "afmoe beam cohere2 cohere2_moe "
        "cohere_compass_text flint kolibri1 mistral_large4_text muse_glimmer_text muse_spark_text",
        "rotates by places in an image": "dinov3_vit edgetam_video eomt_dinov3 mlcd pixtral "
        "sam2_video sam3_tracker_video sapiens2 vjepa2",
        "puts its features in another order": "ernie4_5_vl_moe_text",
        "rotates a width or has a base that its config does not name": "clvp clvp_encoder "
        "clvp_decoder cosmos3_edge_text deepseek_ocr2_text mistral4 moonshine_streaming neucodec "
        "qwen2_5_omni_dit seamless_m4t timesfm2_5 unlimited_ocr_text wav2vec2-bert "
        "wav2vec2-conformer xcodec2",
        "takes its positions from time": "musicflamingo",
        "keeps a table of positions that is not rotated": "roformer",
    }.items()
    for name in names.split()
}

# Matches the names of types that take no text, which are too many to list.
_NO_TEXT = re.compile(r"(^|[_-])(vision|vit|video|audio|image)([_-]|$)")

# Types that read their own key instead of transformers'.
_NEOX = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
_GLOBAL = {"rope_theta": "global_rope_theta"}
OWN_NAMES: Mapping[str, Mapping[str, str]] = {
    "gpt_neox": _NEOX,
    "gpt_neox_japanese": _NEOX,
    "modernbert": _GLOBAL,
    "modernbert-decoder": _GLOBAL,
}

# Types of which some layers are not rotated, which `from_hf` reads: the embedding is that of the
# others, and `no_rope_layers` says which they are.
UNROTATED_LAYERS = frozenset({"smollm3"})

# Types that rotate (in all layers) only if a key has a certain value.
_ALL_ONES = "a list of ones"
CONDITIONS: Mapping[str, tuple[str, Any]] = {
    "llama4_text": ("no_rope_layers", _ALL_ONES),
    "exaone4": ("sliding_window", None),
    "exaone_moe": ("sliding_window", None),
    "granitemoehybrid": ("position_embedding_type", "rope"),
    "esm": ("position_embedding_type", "rotary"),
    "zamba2": ("use_mem_rope", True),
}

_ALL_TYPES: Mapping[str, ModelType] = {
    **MODEL_TYPES,
    **SCALED,
    **LAYERED,
    **_rows(
        (ModelType(theta=2e6), "smollm3"),
        (ModelType(theta=5e5, head_dim=128), "llama4_text"),
        (ModelType(head_dim=128), "afmoe beam cohere2_moe flint kolibri1 muse_glimmer_text"),
        (ModelType(theta=5e5, head_dim=64), "muse_spark_text"),
        (LLAMA, "cohere2 esm exaone4 exaone_moe"),
    ),
}


def model_type_of(name: str | None) -> ModelType | None:
    """The defaults of a type; None if they are not known."""
    return LLAMA if name is None else _ALL_TYPES.get(name)


def obstacle(config: Mapping[str, Any]) -> str | None:
    """Why no single RopeSpec fits a config's type, as the end of a sentence; None if one does."""
    name = config.get("model_type")
    if name is None:
        return None
    if name in REFUSED:
        return REFUSED[name]
    if name not in _ALL_TYPES and _NO_TEXT.search(name):
        return "is no model of text"
    for part, own_name in OWN_NAMES.get(name, {}).items():
        if config.get(part) is not None and config.get(own_name) is None:
            return f"does not read {part} but {own_name}"
    if name in CONDITIONS:
        key, condition = CONDITIONS[name]
        value = config.get(key)
        if condition == _ALL_ONES:
            is_rotated = isinstance(value, list) and bool(value) and all(value)
        else:
            is_rotated = key in config and bool(value == condition)
        if not is_rotated:
            return f"rotates the heads of all its layers only where {key} is {condition!r}"
    return None
