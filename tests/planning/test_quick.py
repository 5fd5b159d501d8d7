"""XLA's buffer assignment, read by hand."""

from rrope_jax.planning.quick import Assignment, read_assignment

# Sizes of a program with two arguments, one of which is donated; a result of its own; a block of
# temporaries and a constant; and what is not in the main memory: work space of a fusion, and
# temporaries in a core's own memory (color 1).
TEXT = """\
BufferAssignment:
allocation 0: size 128, page 0, constant:
 value: <1 constant.1 @0> (size=128,offset=0): f32[32]
allocation 5: size 262144000, page 0, thread-local:
allocation 6: size 4096, page 0, parameter 6, shape |f32[32,32]| at ShapeIndex {}, maybe-live-out:
 value: <10 param.6 @0> (size=4096,offset=0): f32[32,32]
allocation 7: size 1024, page 0, parameter 1, shape |f32[256]| at ShapeIndex {}:
allocation 8: size 64, page 0, maybe-live-out:
allocation 9: size 8192, page 0, preallocated-temp:
allocation 10: size 500, color 1, page 0, preallocated-temp:
"""


def test_read() -> None:
    assert read_assignment(TEXT) == Assignment(
        arguments=4096 + 1024, outputs=64, temporaries=8192 + 128
    )
