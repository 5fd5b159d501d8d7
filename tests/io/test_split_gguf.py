"""Models in several GGUF files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from rrope_jax.io import pretrained
from rrope_jax.io.conversion import convert
from rrope_jax.io.gguf import container as gguf_file
from rrope_jax.io.gguf.write import _add
from tests.io import tiny


def _write(path: Path, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    writer = GGUFWriter(path, "llama")
    # the writer names the architecture itself
    _add(writer, {k: v for k, v in metadata.items() if k != "general.architecture"})
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _split(whole: Path, parts: Sequence[Callable[[str], bool]], **keys: Any) -> list[Path]:
    """The file as several, each with the tensors that a function picks."""
    contents = gguf_file.read_header(whole)
    arrays = {n: gguf_file.read_tensor(n, each) for n, each in contents.tensors.items()}
    count = len(parts)
    paths = []
    for number, picks in enumerate(parts):
        path = whole.with_name(f"part-{number + 1:05}-of-{count:05}.gguf")
        own = {"split.no": number, "split.count": count, "split.tensors.count": len(arrays), **keys}
        picked = {name: array for name, array in arrays.items() if picks(name)}
        _write(path, own | (contents.metadata if number == 0 else {}), picked)
        paths.append(path)
    return paths


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return tiny.save(tiny.decoder(), tmp_path / "whole.gguf", "gguf")


TAIL = (lambda name: name != "output.weight", lambda name: name == "output.weight")
THREE = (
    lambda name: name.startswith("blk.0"),
    lambda name: name.startswith("blk.1"),
    lambda name: not name.startswith("blk"),
)


@pytest.mark.parametrize("parts", [TAIL, THREE])
def test_all_parts_are_read_whichever_is_named(
    whole: Path, parts: Sequence[Callable[[str], bool]], tmp_path: Path
) -> None:
    expected, described = pretrained.load(whole)
    for path in _split(whole, parts):
        found, description = pretrained.load(path)
        assert description == described
        np.testing.assert_array_equal(tiny.logits(found), tiny.logits(expected))
    convert(path, tmp_path / "again.gguf", "gguf")
    assert pretrained.describe(tmp_path / "again.gguf") == described


@pytest.mark.parametrize("named", [0, 1, 2])
def test_a_missing_part_is_named(whole: Path, named: int) -> None:
    paths = _split(whole, THREE)
    lost = paths[(named + 1) % 3]
    lost.unlink()
    with pytest.raises(ValueError, match=f"is part {named + 1} of 3 .* {lost.name} is missing"):
        pretrained.describe(paths[named])


def test_a_part_that_was_renamed(whole: Path) -> None:
    first = _split(whole, TAIL)[0]
    renamed = first.rename(first.with_name("model.gguf"))
    with pytest.raises(ValueError, match=r"is part 1 of 2 .*has to end in -00001-of-00002.gguf"):
        pretrained.describe(renamed)


def test_a_part_of_another_model(whole: Path) -> None:
    first, second = _split(whole, TAIL)
    second.write_bytes(whole.read_bytes())
    with pytest.raises(ValueError, match=r"00002-of-00002.gguf does not belong to it"):
        pretrained.describe(first)
    with pytest.raises(ValueError, match=r"is called part 2 of 2 and has no split.count"):
        pretrained.describe(second)


def test_tensors_that_are_missing_or_there_twice(whole: Path) -> None:
    first, _ = _split(whole, (TAIL[0], lambda name: name == "none"))
    with pytest.raises(ValueError, match=r"have 20 tensors, split.tensors.count says 21"):
        pretrained.describe(first)
    first, _ = _split(whole, (lambda name: True, TAIL[1]))
    with pytest.raises(ValueError, match=r"both have 'output\.weight'"):
        pretrained.describe(first)


@pytest.mark.parametrize("count", ["two", -1, 2**31, 10**6])
def test_damaged_numbers_of_parts(whole: Path, count: Any) -> None:
    first = _split(whole, TAIL)[0]
    contents = gguf_file.read_header(whole)
    keys = contents.metadata | {"split.no": 0, "split.tensors.count": 21}
    value = {"split.count": count} if count != -1 else {"split.count": float(count)}
    _write(first, keys | value, {})
    with pytest.raises(ValueError, match=r"split.count|has to end in"):
        pretrained.describe(first)


def test_folder_of_gguf_files(whole: Path) -> None:
    with pytest.raises(ValueError, match="is a folder with GGUF files; name one of them"):
        pretrained.describe(whole.parent)


def _with_type(whole: Path, kind: GGMLQuantizationType, name: str) -> Path:
    """The file with one tensor of another type, of the right number of bytes."""
    from gguf import GGML_QUANT_SIZES

    contents = gguf_file.read_header(whole)
    path = whole.with_name("typed.gguf")
    writer = GGUFWriter(path, "llama")
    _add(writer, {k: v for k, v in contents.metadata.items() if k != "general.architecture"})
    for each, tensor in contents.tensors.items():
        array = gguf_file.read_tensor(each, tensor)
        if each != name:
            writer.add_tensor(each, array)
            continue
        block, size = GGML_QUANT_SIZES[kind]
        rows = np.zeros((array.shape[0], 256 // block * size), np.uint8)
        writer.add_tensor(each, rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["Q1_0", "Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"])
def test_types_that_cannot_be_decoded_are_named_before_anything_is_written(
    kind: str, whole: Path, tmp_path: Path
) -> None:
    name = "blk.1.ffn_up.weight"
    path = _with_type(whole, GGMLQuantizationType[kind], name)
    (tmp_path / "to").mkdir()
    with pytest.raises(
        ValueError, match=f"'{name}' is of the type {kind}, which cannot be decoded"
    ):
        convert(path, tmp_path / "to" / "a", "orbax")
    assert list((tmp_path / "to").iterdir()) == []


def test_frequency_factors_of_a_type_that_cannot_be_decoded(whole: Path) -> None:
    contents = gguf_file.read_header(whole)
    arrays = {n: gguf_file.read_tensor(n, each) for n, each in contents.tensors.items()}
    path = whole.with_name("factors.gguf")
    _write(path, contents.metadata, arrays | {"rope_freqs.weight": np.ones(6, np.int32)})
    with pytest.raises(ValueError, match=r"'rope_freqs.weight' is of the type I32"):
        pretrained.describe(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.block_count", "two", "must be an integer"),
        ("llama.block_count", [2, 3], "must be an integer"),
        ("llama.embedding_length", 32.5, "must be an integer"),
        ("llama.attention.head_count_kv", [2, 1], "must be an integer"),
        ("llama.rope.freq_base", "10000", "must be a finite number"),
        ("llama.rope.freq_base", float("nan"), "must be a finite number"),
        ("llama.rope.scaling.factor", "4", "must be a finite number"),
        ("llama.rope.scaling.type", 4, "must be a string"),
        ("llama.rope.scaling.original_context_length", "8", "must be an integer"),
        ("llama.attention.layer_norm_rms_epsilon", True, "must be a finite number"),
        ("rrope.folded_temperature", "hot", "must be a finite number"),
        ("general.architecture", ["llama"], "is not implemented"),
    ],
)
def test_keys_of_another_type(whole: Path, key: str, value: Any, message: str) -> None:
    contents = gguf_file.read_header(whole)
    metadata = contents.metadata | {key: value}
    damaged = gguf_file.Contents(metadata, contents.tensors)
    from rrope_jax.io.gguf import read as gguf

    with pytest.raises(ValueError, match=message):
        gguf._describe(whole, damaged)


def test_one_number_for_each_layer_is_that_number_where_all_are_equal(whole: Path) -> None:
    from rrope_jax.io.gguf import read as gguf

    contents = gguf_file.read_header(whole)
    lists = {"llama.attention.head_count_kv": [2, 2], "llama.feed_forward_length": [56, 56]}
    found = gguf._describe(whole, gguf_file.Contents(contents.metadata | lists, contents.tensors))
    assert found == pretrained.describe(whole)


def test_a_key_or_tensor_twice(whole: Path) -> None:
    data = whole.read_bytes()
    whole.write_bytes(data.replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight"))
    with pytest.raises(ValueError, match=r"has 'blk\.0\.attn_q\.weight' twice"):
        pretrained.describe(whole)


def test_values_that_are_not_utf_8(whole: Path) -> None:
    """A name of a model does not have to be; names of keys and tensors do."""
    data, expected = whole.read_bytes(), pretrained.describe(whole)
    assert data.count(b"rrope") == 1  # general.name
    whole.write_bytes(data.replace(b"rrope", b"rr\xffpe"))
    assert pretrained.describe(whole) == expected
    whole.write_bytes(data.replace(b"blk.1.attn_q.weight", b"blk.1.attn_\xff.weight"))
    with pytest.raises(ValueError, match="damaged"):
        pretrained.describe(whole)


def test_big_endian_files(whole: Path) -> None:
    data = whole.read_bytes()
    whole.write_bytes(data[:4] + (3).to_bytes(4, "big") + data[8:])
    with pytest.raises(ValueError, match="big-endian"):
        pretrained.describe(whole)
