"""Collectives read from a hand-written module of HLO text."""

import pytest

from rrope_jax.planning.roofline.collectives import read, sum_by_axis

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


def test_transfers_between_slices() -> None:
    """As libtpu 0.0.52 writes them for two slices of four: the program of a slice, by its hosts."""
    module = """\
HloModule step, is_scheduled=true, num_partitions=4

ENTRY %main (a: f32[64]) -> f32[64] {
  %send = (f32[8,8]{1,0:T(8,128)}, u32[], token[]) send(%a, %t), channel_id=2, \
is_host_transfer=true, frontend_attributes={_xla_megascale_reduce_operation="SUM",\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[8,8]{1,0:T(8,128)}, u32[], token[]) recv(%t), channel_id=1, \
is_host_transfer=true, frontend_attributes={_xla_megascale_reduce_operation="SUM",\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send.1 = (f32[4]{0}, u32[], token[]) send(%a, %t), channel_id=3, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_GATHER"}
  %recv.1 = (f32[8]{0}, u32[], token[]) recv(%t), channel_id=4, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_GATHER"}
}
"""
    by_kind = {c.kind: c for c in read(module)}
    assert {kind: c.bytes for kind, c in by_kind.items()} == {"all-reduce": 256, "all-gather": 32}
    assert by_kind["all-reduce"].groups == ((0, 4), (1, 5), (2, 6), (3, 7))
    mesh = {"data": 2, "fsdp": 4, "seq": 1, "tensor": 1}
    assert sum_by_axis(read(module), mesh) == {
        "all-gather": {"data": 16.0},
        "all-reduce": {"data": 256.0},
    }


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


# As libtpu writes them: a transfer in three stages of one chain; metadata of a kernel that looks
# like the end of a computation; groups by axes of a mesh; a sum that is scattered at once; and a
# loop whose turns only its condition tells.
STAGES = """\
HloModule step, num_partitions=8

%less (t: (s32[])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  %turn = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt = pred[]{:T(512)} compare(%turn, %five), direction=LT
}

%begin (p: bf16[2,4]) -> bf16[8,4] {
  ROOT %g.1 = bf16[8,4]{1,0} all-gather(%p), replica_groups=mesh['axis_0'=2,'axis_1'=4] \
{'axis_1'}, dimensions={0}, frontend_attributes={chain_id="7"}
}

%middle (p: bf16[2,4]) -> bf16[8,4] {
  ROOT %g.2 = bf16[8,4]{1,0} all-gather(%p), replica_groups=mesh['axis_0'=2,'axis_1'=4] \
{'axis_1'}, dimensions={0}, frontend_attributes={chain_id="7"}
}

%all-reduce-scatter.1 (p: f32[8]) -> f32[4] {
  ROOT %s = f32[8]{0} all-reduce(%p), replica_groups=mesh['a'=8] {'a':(1)2}, to_apply=%add
}

%body (t: (s32[])) -> (s32[]) {
  %kernel = f32[8]{0} custom-call(%x), frontend_attributes={kernel_metadata={
"block": "512"
}}, metadata={op_name="attention"}
  %one = bf16[8,4]{1,0} fusion(%y), kind=kLoop, calls=%begin
  %two = bf16[8,4]{1,0} fusion(%y), kind=kOutput, calls=%middle
  %three = f32[4]{0} fusion(%z), kind=kCustom, calls=%all-reduce-scatter.1
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %loop = (s32[]{:T(128)}) while(%b), condition=%less, body=%body
}
"""


def test_text_as_libtpu_writes_it() -> None:
    gather, scatter = read(STAGES)
    assert (gather.kind, gather.bytes, gather.times) == ("all-gather", 64, 5)
    assert gather.groups == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert (scatter.kind, scatter.bytes, scatter.times) == ("reduce-scatter", 32, 5)
    assert scatter.groups == ((0, 4), (1, 5), (2, 6), (3, 7))  # the first half of the axis


def test_text_without_an_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        read("not a module")
