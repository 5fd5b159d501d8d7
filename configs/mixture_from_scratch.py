"""A decoder of 0.8 million parameters learns four kinds of English at once, byte by byte.

    bash launch/long_texts.sh
    rrope train --config=configs/mixture_from_scratch.py --workdir=runs/mixture

Shows a mixture: novels, essays and manuals with a share each of what is read, and this project's
documentation in two buckets, long pages from the beginning of a row, short ones packed. The loss on
held-out text is logged for each, and `sources.json` says what was read. Run it from the clone's
root, since sources are paths. A few minutes on two CPU cores; in the end the loss on held-out text
is 1.8 nats a byte for novels and essays, 2.4 for manuals and 2.2 to 2.3 for pages.
"""

from ml_collections import ConfigDict

_PAGES = {"source": "docs/*.md", "heldout": ("rope.md", "sharding.md")}


def get_config() -> ConfigDict:
    """The config of `rrope train`."""
    config = ConfigDict()

    config.model = ConfigDict()
    config.model.d_model = 128
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.num_kv_heads = 2
    config.model.d_ff = 384
    config.model.tie_embeddings = True

    config.rope = ConfigDict()
    config.rope.theta = 10_000.0
    config.rope.scaling = "none"
    config.rope.resonance = True

    config.data = ConfigDict()
    config.data.tokenizer = "bytes"
    config.data.eos = True
    config.data.seed = 0
    config.data.sources = ConfigDict()
    config.data.sources.novels = ConfigDict(
        {"source": "texts/austen_*.txt", "weight": 0.4, "heldout": ("austen_persuasion.txt",)}
    )
    config.data.sources.essays = ConfigDict(
        {"source": "texts/anarchist_*.txt", "weight": 0.3, "heldout": ("anarchist_faq_E.txt",)}
    )
    config.data.sources.manuals = ConfigDict(
        {"source": "texts/debian_*.txt", "weight": 0.2, "heldout": ("debian_reference.txt",)}
    )
    config.data.sources.pages = ConfigDict(
        {**_PAGES, "weight": 0.05, "max_tokens": 8192, "max_epochs": 4}
    )
    config.data.sources.long_pages = ConfigDict(
        {**_PAGES, "weight": 0.05, "min_tokens": 8193, "packing": "one_document_per_row"}
    )

    config.train = ConfigDict()
    config.train.steps = 300
    config.train.batch_size = 16
    config.train.length = 256
    config.train.learning_rate = 2e-3
    config.train.schedule = "cosine"
    config.train.warmup_fraction = 0.1
    config.train.weight_decay = 0.1
    config.train.gradient_clip = 1.0
    config.train.seed = 0

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 100
    config.checkpoint.keep = 2

    config.eval = ConfigDict()
    config.eval.every_steps = 100
    config.eval.batch_size = 16
    config.eval.max_rows = 32
    return config
