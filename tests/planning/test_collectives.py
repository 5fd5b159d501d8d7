"""Collectives read from a hand-written module of HLO text."""

import pytest

from rrope_jax.planning.collectives import read, sum_by_axis

MESH = {"data": 1, "fsdp": 2, "seq": 2, "tensor": 2}

# A loop of 3 turns gathers bfloat16[8, 4] over pairs of neighbours, in a called computation; the
# entry sums float32[16] over all and scatters a sum over devices 4 apart.
MODULE = """\
HloModule step, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p: bf16[4,4]) -> bf16[8,4] {
  %p = bf16[4,4]{1,0} parameter(0)
  ROOT %gathered = bf16[8,4]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=1, \
replica_groups=[4,2]<=[8], dimensions={0}, use_global_device_ids=true
}

%body (t: (s32[], bf16[4,4])) -> (s32[], bf16[4,4]) {
  %t = (s32[], bf16[4,4]{1,0}) parameter(0)
  %called = bf16[8,4]{1,0} call(%q), to_apply=%inner
}

%condition (t: (s32[], bf16[4,4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[16], b: (s32[], bf16[4,4])) -> f32[16] {
  %a = f32[16]{0} parameter(0)
  %loop = (s32[], bf16[4,4]{1,0}) while(%b), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %summed = f32[16]{0} all-reduce(%a), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %scattered = f32[8]{0} reduce-scatter(%summed), replica_groups=[4,2]<=[2,4]T(1,0), \
dimensions={0}, to_apply=%add
  %started = (f32[4]{0}, f32[16]{0}) all-gather-start(%c), replica_groups=[2,4]<=[8], \
dimensions={0}
  %done = f32[16]{0} all-gather-done(%started)
  ROOT %moved = f32[16]{0} collective-permute(%summed), \
source_target_pairs={{0,2},{2,0},{1,3},{3,1}}
}
"""


def test_every_collective_of_a_module_is_found_with_its_turns() -> None:
    found = sorted((c.kind, len(c.groups[0]), c.bytes, c.times) for c in read(MODULE))
    assert found == [
        ("all-gather", 2, 8 * 4 * 2, 3),
        ("all-gather", 4, 16 * 4, 1),
        ("all-reduce", 8, 16 * 4, 1),
        ("collective-permute", 2, 16 * 4, 1),
        ("reduce-scatter", 2, 16 * 4, 1),
    ]


def test_groups_say_which_axes_of_the_mesh_they_go_over() -> None:
    axes = {(c.kind, len(c.groups[0])): c.axes(MESH) for c in read(MODULE)}
    assert axes == {
        ("all-gather", 2): ("tensor",),
        ("all-reduce", 8): ("fsdp", "seq", "tensor"),
        ("reduce-scatter", 2): ("fsdp",),
        ("all-gather", 4): ("seq", "tensor"),
        ("collective-permute", 2): ("seq",),
    }


def test_sent_bytes() -> None:
    """Of an array of 64 bytes: 1/2 to the one other, 3/4 among four, 2 x 7/8 for a sum of eight."""
    assert sum_by_axis(read(MODULE), MESH) == {
        "all-gather": {"tensor": 3 * 32.0, "seq+tensor": 48.0},
        "reduce-scatter": {"fsdp": 32.0},
        "all-reduce": {"fsdp+seq+tensor": 112.0},
        "collective-permute": {"seq": 64.0},
    }


def test_text_without_an_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        read("not a module")
