"""SmolLM2-135M under one method of the method table, without any fine-tune, to twice its context.

    rrope evaluate --config=configs/evaluate_method.py:resonance_yarn \
        --workdir=runs/methods_smollm2/resonance_yarn \
        --checkpoint=models/SmolLM2-135M-Instruct.Q4_1.gguf

After the colon comes the method, `[rule_]scaling`, which gets the fields below that it reads, and
perhaps a temperature by position, as in `yarn,log_n`. launch/method_table.sh runs it for every row;
docs/method_table.md has what came out.

Cost: two minutes of one core a method, on one document.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from rrope_jax.rope.far_positions import unread_by_far
from rrope_jax.rope.methods import fields_of
from rrope_jax.rope.scalings import unread_fields

CONTEXT = 8192  # tokens, of SmolLM2
FIELDS = {
    "factor": 4.0,
    "abf_theta": 500_000.0,
    "clipped_features": 10,
    "shortest_wavelength": 32.0,
    "far_window": 1024,
    "far_group": 4,
}


def get_config(argument: str = "yarn") -> ConfigDict:
    """The config of `rrope evaluate`; what it leaves out is the checkpoint's own."""
    evaluate = runpy.run_path(str(Path(__file__).with_name("evaluate_smollm2.py")))
    config: ConfigDict = evaluate["get_config"]()
    method, _, temperature = argument.partition(",")
    fields = fields_of(method)
    unread = unread_fields(fields["scaling"]) | unread_by_far(fields["far_positions"])
    read = {name: FIELDS[name] for name in FIELDS if name not in unread}
    config.rope = ConfigDict({**read, **fields})
    if temperature:
        config.rope.position_temperature = temperature
        config.rope.temperature_context = CONTEXT
    config.data.heldout = ("debian_reference.txt",)
    config.eval.perplexity.contexts = (2048, 4096, 8192, 16384)
    config.eval.passkey.enabled = False
    return config
