"""Our own checkpoints: model folders and training workdirs, as Orbax writes them."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rrope_jax.io import pretrained
from rrope_jax.io.description import Description
from rrope_jax.io.orbax import layout
from rrope_jax.io.orbax.checkpoint import Checkpoints
from rrope_jax.io.orbax.read import OrbaxSource
from rrope_jax.io.orbax.write import write
from rrope_jax.io.tokenizer.files import TokenizerFiles
from rrope_jax.io.weights import parameter_shapes
from rrope_jax.rope import RopeSpec
from tests.fuzz import model_folders
from tests.fuzz.encoding import encode
from tests.fuzz.judging import Target

NAME = "model"


def _tree(folder: Path) -> dict[str, Any]:
    """What is in a folder; JSON as such, so that it can be changed inside."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _content(path.read_bytes()) for path in files}


def _content(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data


def _arrays() -> dict[str, Any]:
    """What training saves, as far as it is the model."""
    params: dict[str, Any] = {}
    for weight, shape in parameter_shapes(model_folders.MODEL).items():
        *groups, last = weight.path.split(".")
        holder = params
        for key in groups:
            holder = holder.setdefault(key, {})
        holder[last] = np.ones(shape, np.float32)
    return {"params": params}


def seeds() -> Sequence[dict[str, Any]]:
    """A training workdir with two checkpoints, and a model folder."""
    model = model_folders.MODEL
    spec = RopeSpec(head_dim=model.head_size, scaling="linear", factor=2.0, resonance=True)
    sources = model_folders.seeds()[0]
    tokenizer = {name: data for name, data in encode(sources).items() if "token" in name}
    described = Description(model, spec, 64, TokenizerFiles(tokenizer), {"eos_token_id": [2, 0]})
    with tempfile.TemporaryDirectory() as scratch:
        workdir, exported = Path(scratch, "workdir"), Path(scratch, "exported")
        for step in (1, 2):
            Checkpoints(workdir / layout.CHECKPOINTS).save(
                step,
                _arrays(),
                {layout.DESCRIPTION: layout.description_to_json(described)},
            )
        TokenizerFiles(tokenizer).write(workdir / layout.TOKENIZER)
        exported.mkdir()
        write(OrbaxSource(workdir), exported)
        trees = [_tree(workdir), _tree(exported)]
    # as earlier releases wrote them; or every change is found by its checksum
    trees += [{name: data for name, data in t.items() if "checksums" not in name} for t in trees]
    return [{f"{NAME}/{name}": data for name, data in tree.items()} for tree in trees]


def _run(folder: Path) -> None:
    if (checkpoints := folder / NAME / layout.CHECKPOINTS).is_dir():
        Checkpoints(checkpoints).restore(_arrays())
    pretrained.load(folder / NAME)
    model_folders.read(folder / NAME)


TARGET = Target("own_folders", seeds, _run, share=0.1)
