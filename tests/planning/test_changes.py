"""Which other ways to run a training are tried, and in which order."""

import dataclasses

import pytest
from jax.sharding import AbstractMesh

from rrope_jax.model.presets import PRESETS
from rrope_jax.planning.roofline.changes import alternatives, smaller
from rrope_jax.planning.workload import TextTraining
from rrope_jax.sharding import AXES, MeshConfig
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.sharded import check_rows, parameter_shardings
from rrope_jax.train.step import Program

TINY = PRESETS["tiny"]


def _training(mesh: MeshConfig, *, rows: int = 8, length: int = 64) -> TextTraining:
    train = TrainConfig(steps=1, batch_size=rows, length=length)
    return TextTraining(Program(TINY.model, TINY.rope, train), mesh)


def _divides(workload: TextTraining) -> bool:
    """What eight devices of no particular kind can run."""
    mesh = AbstractMesh(workload.mesh.sizes(8), AXES)
    try:
        check_rows(workload.program.train, mesh)
        parameter_shardings(workload.program.model, mesh)
    except ValueError:
        return False
    return True


def test_smaller_goes_from_the_nearest_change_to_the_farthest() -> None:
    """Remat policies, then whole copies split, a batch in parts, rows split, and matrices."""
    base = _training(MeshConfig(data=2, fsdp=4))
    sizes = {"data": 2, "fsdp": 4, "seq": 1, "tensor": 1}
    tried = [change.fields for change in smaller(base, sizes, _divides)]
    assert tried[:3] == [
        ("model.remat=dots",),
        ("model.remat=full",),
        ("mesh.data=1", "mesh.fsdp=8", "model.remat=full"),
    ]
    # eight rows on eight devices are one each: no more parts without splitting rows
    assert tried[3] == (
        "mesh.data=1",
        "mesh.seq=2",
        "model.remat=full",
        "train.accumulation=2",
    )
    assert all("model.remat=full" in change for change in tried[1:])


def test_smaller_takes_more_parts_where_there_are_rows() -> None:
    base = _training(MeshConfig(), rows=32)
    sizes = {"data": 1, "fsdp": 8, "seq": 1, "tensor": 1}
    tried = [change.fields for change in smaller(base, sizes, _divides)]
    assert tried[2] == ("mesh.fsdp=8", *tried[1], "train.accumulation=2")


def test_smaller_splits_matrices_where_rows_cannot_be() -> None:
    """As with dropout on attention weights, which has no split over `seq`."""
    base = _training(MeshConfig())
    sizes = {"data": 1, "fsdp": 8, "seq": 1, "tensor": 1}

    def no_seq(workload: TextTraining) -> bool:
        return workload.mesh.seq == 1 and _divides(workload)

    tried = [change.workload for change in smaller(base, sizes, no_seq)]
    assert {workload.mesh.seq for workload in tried} == {1}
    # two key heads
    assert [workload.mesh.tensor for workload in tried if workload.mesh.tensor > 1] == [2, 2]
    assert [workload.program.train.accumulation for workload in tried][-2:] == [1, 2]


@pytest.mark.parametrize("rows", [8, 16])
def test_every_change_divides(rows: int) -> None:
    base = _training(MeshConfig(), rows=rows)
    sizes = {"data": 1, "fsdp": 8, "seq": 1, "tensor": 1}
    for change in (*smaller(base, sizes, _divides), *alternatives(base, 8, _divides)):
        program, mesh = change.workload.program, change.workload.mesh
        data, fsdp, seq, tensor = mesh.sizes(8)
        assert program.train.batch_size % (program.train.accumulation * data * fsdp) == 0
        assert TINY.model.kv_heads % tensor == 0
        assert seq == 1 or program.train.length % (2 * seq) == 0


def test_alternatives_are_all_meshes_and_policies() -> None:
    base = _training(MeshConfig())
    found = {
        (*change.workload.mesh.sizes(8)[1:], change.workload.program.model.remat)
        for change in alternatives(base, 8, _divides)
    }
    assert (8, 1, 1, "none") in found
    assert (2, 2, 2, "full") in found
    assert not any(tensor > 2 for _, _, tensor, _ in found)  # there are two key heads
    assert len(found) % 3 == 0


def test_slices_lie_along_data() -> None:
    base = _training(MeshConfig(data=2, num_slices=2))
    assert all(change.workload.mesh.data == 2 for change in alternatives(base, 8, _divides))
    assert dataclasses.replace(base.mesh, fsdp=4).sizes(8) == (2, 4, 1, 1)
