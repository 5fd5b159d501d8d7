"""SmolLM2-135M (or any checkpoint) over context lengths up to 32K: perplexity and passkey.

    rrope evaluate --config=configs/evaluate_smollm2.py --workdir=runs/smollm2_yarn \
        --checkpoint=models/SmolLM2-135M-Instruct.Q4_1.gguf \
        --config.rope.scaling=yarn --config.rope.factor=4

launch/smollm2.sh and launch/long_texts.sh fetch model and texts; launch/extend_smollm2.sh runs this
config for every method, before and after the fine-tune of configs/extend_smollm2.py, and compares.
The held-out documents are those that the fine-tune leaves out, all of at least 32,768 tokens; of
other texts, `--config.data.heldout="('*',)"` takes every document. docs/evaluate.md says what it
costs.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The config of `rrope evaluate`; what is None is the checkpoint's own."""
    config = ConfigDict()
    config.rope = ConfigDict()
    config.rope.theta = placeholder(float)
    config.rope.scaling = placeholder(str)
    config.rope.factor = placeholder(float)
    config.rope.original_context = placeholder(int)
    config.rope.resonance = placeholder(bool)
    config.rope.attention_factor = placeholder(float)
    config.rope.beta_fast = placeholder(float)
    config.rope.beta_slow = placeholder(float)

    config.model = ConfigDict()
    config.model.compute_dtype = placeholder(str)
    config.model.attention = placeholder(str)

    config.data = ConfigDict()
    config.data.source = "texts"
    config.data.data_dir = placeholder(str)
    config.data.text_key = placeholder(str)
    config.data.tokenizer = placeholder(str)
    config.data.bos = False
    config.data.heldout = ("anarchist_faq_E.txt", "austen_persuasion.txt", "debian_reference.txt")
    config.data.cache_dir = placeholder(str)

    config.eval = ConfigDict()
    config.eval.batch_size = 1  # prompts or fragments of one length at a time
    config.eval.perplexity = ConfigDict()
    config.eval.perplexity.enabled = True
    config.eval.perplexity.protocol = "fragments"
    config.eval.perplexity.contexts = (2048, 4096, 8192, 16384, 32768)
    config.eval.perplexity.documents = placeholder(int)
    config.eval.perplexity.fragments_per_document = 1
    config.eval.perplexity.stride = 256
    config.eval.perplexity.sliding_tokens = placeholder(int)
    config.eval.perplexity.last_tokens = placeholder(int)
    config.eval.perplexity.logits_chunk = 2048

    # the same documents; evaluator: a checkpoint that tells key tokens in place of the model
    config.eval.longppl = ConfigDict()
    config.eval.longppl.enabled = False
    config.eval.longppl.contexts = (8192, 16384, 32768)
    config.eval.longppl.short_context = 4096
    config.eval.longppl.window = 1024
    config.eval.longppl.alpha = 2.0
    config.eval.longppl.beta = -2.0
    config.eval.longppl.evaluator = placeholder(str)
    config.eval.longppl.documents = placeholder(int)

    config.eval.passkey = ConfigDict()
    config.eval.passkey.enabled = True
    config.eval.passkey.contexts = (2048, 4096, 8192, 16384, 32768)
    config.eval.passkey.depths = (0.1, 0.5, 0.9)
    config.eval.passkey.trials = 1
    config.eval.passkey.digits = 5
    config.eval.passkey.seed = 0

    # lines of {"input": document, "instructions": [...], "outputs": [...]}, as of L-Eval
    config.eval.closed_ended = ConfigDict()
    config.eval.closed_ended.enabled = False
    config.eval.closed_ended.files = ("coursera.jsonl",)
    config.eval.closed_ended.metric = "auto"
    config.eval.closed_ended.context = 8192
    config.eval.closed_ended.max_tokens = 32
    config.eval.closed_ended.documents = placeholder(int)

    # RULER's tasks; "qa_1" and "qa_2" also need squad and hotpotqa, the paths of their JSON files
    config.eval.ruler = ConfigDict()
    config.eval.ruler.enabled = False
    config.eval.ruler.contexts = (2048, 4096, 8192, 16384, 32768)
    config.eval.ruler.samples = 20
    config.eval.ruler.seed = 42
    config.eval.ruler.template = "base"
    config.eval.ruler.text = placeholder(str)
    config.eval.ruler.words = placeholder(str)
    config.eval.ruler.squad = placeholder(str)
    config.eval.ruler.hotpotqa = placeholder(str)
    return config
