"""Checkpoints: what is saved comes back, also past a damaged one."""

import contextlib
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rrope_jax.io.array_checkpoints import ArrayCheckpoints
from rrope_jax.io.orbax.checkpoint import BackgroundCheckpoints, Checkpoints, SaveError, _with_time

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The package's log, which a job run earlier in this process may have detached."""
    logger = logging.getLogger("rrope_jax")
    propagate, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.WARNING, "rrope_jax"):
        yield caplog
    logger.propagate = propagate


def _tree(value: float) -> dict[str, object]:
    return {
        "params": {
            "w_DF": jnp.full((3, 4), value, jnp.float32),
            "half_D": jnp.full((3,), value, jnp.bfloat16),
        },
        "step": jnp.int32(value),
    }


def _equal(one: object, other: object) -> bool:
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), one, other)
    return all(jax.tree.leaves(same))


def _damage(folder: Path) -> None:
    """Cuts the largest file short, as a full disk or a lost block would."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def test_tree_and_metadata_come_back_bit_for_bit(tmp_path: Path) -> None:
    tree = _tree(1 / 3)
    metadata = {"losses": [[0.1, 1 / 3], []], "name": "rope"}
    Checkpoints(tmp_path / "run").save(7, tree, metadata)
    found = Checkpoints(tmp_path / "run").restore(_tree(0.0))
    assert found is not None
    restored, restored_metadata = found
    assert _equal(restored, tree)
    assert restored_metadata == metadata


def test_floats_of_the_metadata_are_exact(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).normal(size=100).astype(np.float32).astype(float).tolist()
    Checkpoints(tmp_path).save(1, _tree(0.0), {"losses": losses})
    found = Checkpoints(tmp_path).restore(_tree(0.0))
    assert found is not None
    assert found[1]["losses"] == losses


def test_nothing_to_restore(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert Checkpoints(absent).restore(_tree(0.0)) is None
    assert not absent.exists()
    (tmp_path / "empty").mkdir()
    assert Checkpoints(tmp_path / "empty").restore(_tree(0.0)) is None


def test_newest_comes_back_and_old_ones_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (9, 10, 11):  # as text, 9 would be the newest
        checkpoints.save(step, _tree(step), {"step": step})
    found = checkpoints.restore(_tree(0.0))
    assert found is not None
    assert found[1] == {"step": 11}
    assert _equal(found[0], _tree(11))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "11"]


class TestDamage:
    @pytest.fixture
    def checkpoints(self, tmp_path: Path) -> Checkpoints:
        checkpoints = Checkpoints(tmp_path)
        for step in (5, 10):
            checkpoints.save(step, _tree(step), {"step": step})
        _damage(tmp_path / "10")
        return checkpoints

    def test_falls_back_to_the_one_before_and_says_so(
        self, checkpoints: Checkpoints, tmp_path: Path, warnings: pytest.LogCaptureFixture
    ) -> None:
        found = checkpoints.restore(_tree(0.0))
        assert found is not None
        assert found[1] == {"step": 5}
        assert _equal(found[0], _tree(5))
        (record,) = warnings.records
        assert f"checkpoint {tmp_path / '10'} cannot be read" in record.getMessage()
        assert "\n" not in record.getMessage()

    def test_next_save_replaces_it(self, checkpoints: Checkpoints) -> None:
        checkpoints.save(10, _tree(-10), {"step": -10})
        found = checkpoints.restore(_tree(0.0))
        assert found is not None
        assert found[1] == {"step": -10}
        assert _equal(found[0], _tree(-10))

    def test_all_damaged_is_as_none(self, checkpoints: Checkpoints, tmp_path: Path) -> None:
        _damage(tmp_path / "5")
        assert checkpoints.restore(_tree(0.0)) is None

    def test_what_one_process_cannot_read_none_takes(
        self, tmp_path: Path, warnings: pytest.LogCaptureFixture
    ) -> None:
        checkpoints = Checkpoints(tmp_path)
        for step in (5, 10):
            checkpoints.save(step, _tree(step), {"step": step})
        others = iter([[10, 5], "another host's disk", ""])
        found = checkpoints.restore(_tree(0.0), gather=lambda value: [value, next(others)])
        assert found is not None
        assert found[1] == {"step": 5}
        (record,) = warnings.records
        assert "10 cannot be read (another host's disk)" in record.getMessage()

    @pytest.mark.parametrize("lost", ["tree", "metadata"])
    def test_lost_part(self, tmp_path: Path, lost: str) -> None:
        checkpoints = Checkpoints(tmp_path)
        for step in (1, 2):
            checkpoints.save(step, _tree(step), {"step": step})
        for path in sorted((tmp_path / "2" / lost).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        found = checkpoints.restore(_tree(0.0))
        assert found is not None
        assert found[1] == {"step": 1}


def _flips(folder: Path, seed: int, count: int) -> Iterator[tuple[Path, int]]:
    """Places of bits: of every file some, however small it is."""
    random = np.random.default_rng(seed)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        for bit in random.integers(0, 8 * file.stat().st_size, count if file.stat().st_size else 0):
            yield file, int(bit)


@contextlib.contextmanager
def _flipped(file: Path, bit: int) -> Iterator[None]:
    data = file.read_bytes()
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(changed)
    yield
    file.write_bytes(data)


class TestFlippedBit:
    """What is read is what was saved, or is not read."""

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", [Checkpoints, ArrayCheckpoints])
    def test_anywhere(
        self, kind: type[Checkpoints] | type[ArrayCheckpoints], tmp_path: Path
    ) -> None:
        numbers = np.random.default_rng(0).normal(size=(20, 300)).astype(np.float32)
        tree = {"params": {"w_DF": numbers}, "step": np.int32(7)}
        if kind is Checkpoints:
            tree = jax.tree.map(jnp.asarray, tree)
        metadata = {"losses": numbers[0].tolist(), "name": "rope"}
        checkpoints = kind(tmp_path)
        for step in (6, 7):
            checkpoints.save(step, tree, metadata | {"step": step})
        found = []
        for file, bit in _flips(tmp_path / "7", seed=0, count=8):
            with _flipped(file, bit):
                restored = checkpoints.restore(jax.tree.map(jnp.zeros_like, tree))
            assert restored is not None
            assert _equal(restored[0], tree), (file, bit)
            assert restored[1] in [metadata | {"step": step} for step in (6, 7)], (file, bit)
            found.append(restored[1]["step"])
        assert 6 in found

    def test_in_the_middle_of_the_numbers(
        self, tmp_path: Path, warnings: pytest.LogCaptureFixture
    ) -> None:
        """Which no file format of Orbax notices."""
        numbers = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
        checkpoints = Checkpoints(tmp_path)
        for step in (5, 10):
            checkpoints.save(step, {"params": {"w": jnp.asarray(numbers)}}, {"step": step})
        files = [path for path in (tmp_path / "10" / "tree").rglob("*") if path.is_file()]
        largest = max(files, key=lambda path: path.stat().st_size)
        with _flipped(largest, 4 * largest.stat().st_size + 4):
            found = checkpoints.restore({"params": {"w": jnp.zeros(numbers.size)}})
        assert found is not None
        assert found[1] == {"step": 5}
        (record,) = warnings.records
        expected = f"checkpoint {tmp_path / '10'} cannot be read (damaged: params.w is not what"
        assert record.getMessage().startswith(expected)

    def test_checksums_of_another_checkpoint(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        for step in (5, 10):
            checkpoints.save(step, _tree(step), {"step": step})
        file = Path("checksums", "metadata")
        (tmp_path / "10" / file).write_bytes((tmp_path / "5" / file).read_bytes())
        found = checkpoints.restore(_tree(0.0))
        assert found is not None
        assert found[1] == {"step": 5}

    def test_checkpoints_of_earlier_releases_have_no_checksums(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(5, _tree(5), {"step": 5})
        shutil.rmtree(tmp_path / "5" / "checksums")
        found = checkpoints.restore(_tree(0.0))
        assert found is not None
        assert _equal(found[0], _tree(5))


@pytest.mark.parametrize("name", ["lr=[1e-3]", "a*b", "a?b", "a\\b", "gs:", "a\udcffb"])
def test_folder_that_orbax_takes_for_another(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has .* in it"):
        Checkpoints(tmp_path / name / "checkpoints")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a b", "a%20b", "ü漢", "a{b}", "a#b", "a:b", "~", "$a", "a=b,c]"])
def test_folder_of_any_other_name(name: str, tmp_path: Path) -> None:
    Checkpoints(tmp_path / name).save(3, _tree(3), {})
    found = Checkpoints(tmp_path / name).restore(_tree(0.0))
    assert found is not None
    assert _equal(found[0], _tree(3))


@pytest.mark.parametrize("name", ["[1e-3]", "a*b", "a\\b"])
def test_arrays_of_one_process_alone_may_be_in_any_folder(name: str, tmp_path: Path) -> None:
    tree = {"w": np.arange(3.0)}
    ArrayCheckpoints(tmp_path / name).save(3, tree, {})
    found = ArrayCheckpoints(tmp_path / name).restore(tree)
    assert found is not None
    assert _equal(found[0], tree)


def test_arrays_that_an_earlier_release_saved_with_orbax(
    tmp_path: Path, warnings: pytest.LogCaptureFixture
) -> None:
    tree = {"w": np.arange(3.0)}
    ArrayCheckpoints(tmp_path).save(3, tree, {"step": 3})
    shutil.rmtree(tmp_path / "3" / "checksums")  # the first releases had none
    for file in ("_CHECKPOINT_METADATA", "commit_success.txt", "tree/commit_success.txt"):
        (tmp_path / "3" / file).write_text("{}")
    (tmp_path / "4.orbax-checkpoint-tmp" / "tree.orbax-checkpoint-tmp").mkdir(parents=True)
    found = ArrayCheckpoints(tmp_path).restore(tree)
    assert found is not None
    assert _equal(found[0], tree)
    assert found[1] == {"step": 3}
    assert warnings.text == ""


def test_newest_arrays_stay(tmp_path: Path) -> None:
    checkpoints = ArrayCheckpoints(tmp_path, keep=2)
    for step in (9, 10, 11):
        checkpoints.save(step, {"w": np.full(3, step)}, {"step": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "11"]
    (tmp_path / "11" / "tree" / "arrays.npz").write_bytes(b"PK")
    found = checkpoints.restore({"w": np.zeros(3, int)})
    assert found is not None
    assert found[1] == {"step": 10}


def test_save_that_does_not_open_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Orbax looks for the parts of a checkpoint in another folder."""
    checkpoints = BackgroundCheckpoints(tmp_path / "a")
    monkeypatch.setattr(checkpoints, "_folder", tmp_path / "[a]")
    with pytest.raises(SaveError, match="it was saved, but does not open"), checkpoints:
        checkpoints.save(3, _tree(3), {})
    assert checkpoints.newest is None


def test_time_for_a_save_follows_its_size(tmp_path: Path) -> None:
    small, large = (
        _with_time(ocp.CheckpointManagerOptions(), {"w": np.broadcast_to(np.float32(0), n)})
        for n in (3, 52 * 10**9)  # LLaMA2-13B: parameters and moments are 194 GiB
    )
    assert small.async_options.timeout_secs == 600
    assert large.async_options.timeout_secs == 600 + 208e9 / 20e6


def test_other_shape_is_not_taken(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    Checkpoints(tmp_path).save(1, {"w": jnp.zeros(3)}, {})
    assert Checkpoints(tmp_path).restore({"w": jnp.zeros(4)}) is None
    assert "shape" in warnings.text


def test_killed_while_it_saves_a_step_again(
    tmp_path: Path, warnings: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step is saved twice where more is known of it; half of the first is never left there."""
    tree, folder = {"x": np.arange(3)}, tmp_path / "run"
    for step in (1, 2):
        ArrayCheckpoints(folder).save(step, tree, {"saved": 1})

    def die(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", die)
        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            ArrayCheckpoints(folder).save(2, tree, {"saved": 2})
    restored = ArrayCheckpoints(folder).restore(tree)
    assert restored is not None
    assert restored[1] == {"saved": 1}
    assert warnings.text == ""
    ArrayCheckpoints(folder).save(2, tree, {"saved": 2})
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_threads_save_and_restore_side_by_side(tmp_path: Path) -> None:
    """Every device of an ablation has a thread that saves when it likes."""
    threads = 4
    found: list[object] = [None] * threads
    start = threading.Barrier(threads)

    def work(index: int) -> None:
        checkpoints = Checkpoints(tmp_path / str(index))
        start.wait()
        for step in (1, 2, 3):
            checkpoints.save(step, _tree(10 * index + step), {"step": step})
        found[index] = checkpoints.restore(_tree(0.0))

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for index, pair in enumerate(found):
        assert isinstance(pair, tuple)
        assert pair[1] == {"step": 3}
        assert _equal(pair[0], _tree(10 * index + 3))


class TestBackground:
    def test_what_was_saved_comes_back_although_the_arrays_went_on(self, tmp_path: Path) -> None:
        advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
        tree = _tree(1)
        with BackgroundCheckpoints(tmp_path) as checkpoints:
            assert checkpoints.newest is None
            for step in (1, 2, 3):
                checkpoints.save(step, tree, {"step": step})
                tree = advance(tree)
        assert checkpoints.newest == 3
        found = checkpoints.restore(_tree(0.0))
        assert found is not None
        assert found[1] == {"step": 3}
        assert _equal(found[0], _tree(3))

    def test_milestones_stay(self, tmp_path: Path) -> None:
        with BackgroundCheckpoints(tmp_path, keep=2, keep_every=10) as checkpoints:
            for step in range(5, 36, 5):
                checkpoints.save(step, _tree(step), {})
        assert sorted(int(path.name) for path in tmp_path.iterdir()) == [10, 20, 30, 35]

    # the threads of a save that fails may find each other gone
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_full_disk_leaves_the_one_before(self, tmp_path: Path) -> None:
        """A limit on the size of files stands for the disk: it fails in the same calls."""
        numbers = np.random.default_rng(0).normal(size=100_000)  # which do not compress
        like = {"w": jnp.zeros(numbers.size)}
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with BackgroundCheckpoints(tmp_path) as checkpoints:
            checkpoints.save(1, {"w": jnp.asarray(numbers)}, {"step": 1})
            checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            try:
                checkpoints.save(2, {"w": jnp.asarray(numbers)}, {"step": 2})
                with pytest.raises(SaveError, match="2 cannot be written: File too large"):
                    checkpoints.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            found = checkpoints.restore(like)
            assert checkpoints.newest == 1
            assert found is not None
            assert found[1] == {"step": 1}


NO_FOLDERS = """
import os, pathlib, sys
import jax.numpy as jnp
from rrope_jax.io.orbax.checkpoint import BackgroundCheckpoints, SaveError
from rrope_jax.cli.backend import silence_orbax

silence_orbax()
folder, allowed = pathlib.Path(sys.argv[1]), int(sys.argv[2])
mkdir = os.mkdir


def few(path, *arguments, **keywords):
    global allowed
    if str(folder) in str(path):
        allowed -= 1
        if allowed < 0:
            raise OSError(28, "No space left on device", str(path))
    return mkdir(path, *arguments, **keywords)


tree = {"w": jnp.arange(100.0)}
try:
    with BackgroundCheckpoints(folder / "run") as checkpoints:
        checkpoints.save(1, tree, {})
        checkpoints.wait()
        os.mkdir = few
        checkpoints.save(2, tree, {})
        checkpoints.wait()
except SaveError as error:
    print(error, checkpoints.newest)
"""


@pytest.mark.slow
@pytest.mark.parametrize("allowed", range(4))
def test_folder_that_cannot_be_made_ends_the_process_at_once(allowed: int, tmp_path: Path) -> None:
    """No inodes are left, or no quota: threads of Orbax would wait for minutes for its folder."""
    done = subprocess.run(
        [sys.executable, "-c", NO_FOLDERS, str(tmp_path), str(allowed)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,  # they wait for 300 s
    )
    assert done.stdout == (
        f"checkpoint {tmp_path / 'run' / '2'} cannot be written: No space left on device 1\n"
    )
    assert done.stderr == ""


@pytest.mark.slow
def test_process_killed_while_saving_leaves_the_one_before(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, jax.numpy as jnp\n"
        "from rrope_jax.io.orbax.checkpoint import Checkpoints\n"
        "checkpoints = Checkpoints(pathlib.Path(sys.argv[1]))\n"
        "found = checkpoints.restore({'w': jnp.zeros(1 << 20, jnp.int32)})\n"
        "for step in range(found[1]['step'] + 1 if found else 1, 1000):\n"
        "    checkpoints.save(step, {'w': jnp.full(1 << 20, step)}, {'step': step})\n"
        "    print(step, flush=True)\n"
    )
    like = {"w": jnp.zeros(1 << 20, jnp.int32)}
    for attempt in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        ) as process:
            assert process.stdout is not None
            saved = [int(process.stdout.readline()) for _ in range(2)]
            time.sleep(0.03 * attempt)  # somewhere within the saves that follow
            process.send_signal(signal.SIGKILL)
            saved += map(int, process.stdout)
        found = Checkpoints(tmp_path).restore(like)
        assert found is not None
        step = found[1]["step"]
        assert step in (saved[-1], saved[-1] + 1)  # the last one may have ended just in time
        assert (np.asarray(found[0]["w"]) == step).all()
