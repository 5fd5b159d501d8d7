"""Checkpoints in object stores: whole or not there, and the same as on a disk."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rrope_jax.io.array_checkpoints import ArrayCheckpoints
from rrope_jax.io.orbax.checkpoint import Checkpoints, SaveError, steps_in
from rrope_jax.io.orbax.store_arrays import LocalPart
from rrope_jax.io.orbax.store_checkpoints import StoreCheckpoints
from rrope_jax.io.stores import StoreError, StorePath, send
from tests.stores.object_server import Faults, ObjectServer

METADATA = {"data": {"epoch": 2}, "loss": 0.1}


def _tree(step: int) -> dict[str, Any]:
    """As a run has it: a sequence, named tuples, a scalar, low precision."""
    params = {"a.b": {"table": jnp.arange(24.0).reshape(4, 6) + step}}
    return {
        "params": params | {"low": jnp.ones((3, 2), jnp.bfloat16)},
        "opt_state": optax.adam(1e-3).init(params),
        "step": jnp.int32(step),
    }


def _same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert jax.tree.map(lambda x: x.dtype, one) == jax.tree.map(lambda x: x.dtype, other)


def _copy_to_disk(folder: StorePath, target: Path) -> None:
    for path in folder.walk():
        file = target / path.key[len(folder.key) + 1 :]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.read_bytes())


def test_newest_comes_back_and_older_ones_go(folder: StorePath) -> None:
    with StoreCheckpoints(folder, keep=2, keep_every=4) as store:
        assert store.restore(_tree(0)) is None
        for step in (1, 4, 5, 6, 7):
            store.save(step, _tree(step), METADATA)
    assert steps_in(folder) == [7, 6, 4]
    assert StoreCheckpoints(folder).newest == 7
    tree, metadata = StoreCheckpoints(folder).restore(_tree(0)) or pytest.fail("nothing there")
    _same(tree, _tree(7))
    assert metadata == METADATA


def test_disk_and_store_open_each_others(folder: StorePath, tmp_path: Path) -> None:
    with StoreCheckpoints(folder / "a") as store:
        store.save(3, _tree(3), METADATA)
    _copy_to_disk(folder / "a", tmp_path / "a")
    tree, metadata = Checkpoints(tmp_path / "a").restore(_tree(0)) or pytest.fail("nothing there")
    _same(tree, _tree(3))
    assert metadata == METADATA

    Checkpoints(tmp_path / "b").save(5, _tree(5), METADATA)
    send(tmp_path / "b", folder / "b")
    tree, _ = StoreCheckpoints(folder / "b").restore(_tree(0)) or pytest.fail("nothing there")
    _same(tree, _tree(5))


def test_killed_save_does_not_count_and_goes(folder: StorePath) -> None:
    """A run that is killed while saving leaves anything but what is written last."""
    with StoreCheckpoints(folder) as store:
        store.save(1, _tree(1), METADATA)
        store.save(2, _tree(2), METADATA)
    (folder / "2" / "checksums" / "metadata").unlink()
    tree, _ = StoreCheckpoints(folder).restore(_tree(0)) or pytest.fail("nothing there")
    assert tree["step"] == 1
    with StoreCheckpoints(folder) as store:
        store.save(3, _tree(3), METADATA)
    assert [path.name for path in folder.iterdir()] == ["1", "3"]


@pytest.mark.parametrize("harm", ["chunk", "no chunk", "shape", "metadata"])
def test_damaged_checkpoint_gives_way_to_an_older_one(
    folder: StorePath, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    with StoreCheckpoints(folder) as store:
        store.save(1, _tree(1), METADATA)
        store.save(2, _tree(2), METADATA)
    table = folder / "2" / "tree" / "params.a.b.table"
    if harm == "chunk":
        (table / "0.0").write_bytes((folder / "1/tree/params.a.b.table/0.0").read_bytes())
    elif harm == "no chunk":
        (table / "0.0").unlink()
    elif harm == "shape":
        (table / ".zarray").write_text((table / ".zarray").read_text().replace("[4,6]", "[6,4]"))
    else:
        (folder / "2" / "metadata" / "metadata").write_text('{"loss": 0.2}')
    tree, _ = StoreCheckpoints(folder).restore(_tree(0)) or pytest.fail("nothing there")
    _same(tree, _tree(1))
    assert f"checkpoint {folder}/2 cannot be read" in caplog.text


def test_faults_of_the_store_are_no_damage(folder: StorePath, server: ObjectServer) -> None:
    with StoreCheckpoints(folder) as store:
        store.save(1, _tree(1), METADATA)
        server.faults = Faults(drop_before=0.03, drop_after=0.03, busy=0.03, delay=0.005)
        store.save(2, _tree(2), METADATA)
    tree, _ = StoreCheckpoints(folder).restore(_tree(0)) or pytest.fail("nothing there")
    _same(tree, _tree(2))
    server.faults = Faults(forbidden=("GET", "HEAD"))
    with pytest.raises(StoreError, match="permission denied"):
        StoreCheckpoints(folder).restore(_tree(0))
    server.faults = Faults(forbidden=("PUT", "POST"))
    store = StoreCheckpoints(folder)
    store.save(3, _tree(3), METADATA)
    with pytest.raises(SaveError, match=f"checkpoint {folder}/3 cannot be written: .*permission"):
        store.wait()
    server.faults = Faults()
    assert steps_in(folder) == [2, 1]


def test_large_shards_are_sent_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrope_jax.io.orbax.store_arrays._CHUNK_BYTES", 4 * 100)
    assert LocalPart(jnp.zeros((6, 10, 5))).chunk == [2, 10, 5]
    assert LocalPart(jnp.zeros((7, 101))).chunk == [1, 1]
    assert LocalPart(jnp.zeros((7, 99))).chunk == [1, 99]
    assert LocalPart(jnp.zeros((10, 10))).chunk == [10, 10]
    assert LocalPart(jnp.zeros(())).chunk == []


def test_arrays_of_one_process(folder: StorePath, tmp_path: Path) -> None:
    """The checkpoints of PosGen's trainings."""
    tree = {"w": np.arange(6.0), "step": np.int32(1)}
    store, disk = ArrayCheckpoints(folder, keep=1), ArrayCheckpoints(tmp_path / "disk")
    for step in (1, 2):
        store.save(step, tree, {"step": step})
    assert steps_in(folder) == [2]
    disk.save(2, tree, {"step": 2})
    read, metadata = store.restore(tree) or pytest.fail("nothing there")
    _same(read, tree)
    assert metadata == {"step": 2}
    _copy_to_disk(folder, tmp_path / "copy")
    for file in (path for path in (tmp_path / "disk" / "2").rglob("*") if path.is_file()):
        copy = tmp_path / "copy" / file.relative_to(tmp_path / "disk")
        assert copy.read_bytes() == file.read_bytes()
