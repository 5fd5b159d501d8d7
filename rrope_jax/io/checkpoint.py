"""Orbax checkpoints of a pytree with JSON metadata beside it."""

import logging
import threading
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

_LOG = logging.getLogger(__name__)

# Orbax synchronizes the savers of a process through shared state; threads take turns.
_ONE_AT_A_TIME = threading.Lock()


class Checkpoints:
    """The checkpoints of one run in one folder, newest last.

    Saving is synchronous and atomic: a process killed while saving leaves a temporary folder that
    is ignored and replaced.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        """Opens a folder, which need not exist yet.

        Args:
          folder: absolute path.
          keep: how many of the newest checkpoints stay.
        """
        self._folder = folder
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=False,
            create=True,
            cleanup_tmp_directories=True,  # of a process that was killed while it saved
        )

    def save(self, step: int, tree: Any, metadata: dict[str, Any]) -> None:
        """Saves arrays and JSON-able metadata under a step number, replacing what is there.

        Only a checkpoint that `restore` passed over, or an equal one, can be there already.
        """
        arguments = ocp.args.Composite(
            tree=ocp.args.StandardSave(tree), metadata=ocp.args.JsonSave(metadata)
        )
        with _ONE_AT_A_TIME, self._manager() as manager:
            if step in manager.all_steps():
                manager.delete(step)
            manager.save(step, args=arguments, force=True)
            manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None when there is none.

        A checkpoint that cannot be read (a damaged file, say) is passed over with a warning for
        the one before it.

        Args:
          like: a tree of arrays with the wanted structure, shapes, dtypes and placement.
        """
        if not self._folder.is_dir():
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        arguments = ocp.args.Composite(
            tree=ocp.args.StandardRestore(abstract), metadata=ocp.args.JsonRestore()
        )
        with _ONE_AT_A_TIME, self._manager() as manager:
            for step in sorted(manager.all_steps(), reverse=True):
                try:
                    found = manager.restore(step, args=arguments)
                except Exception as error:  # Orbax and its drivers raise many kinds
                    _LOG.warning(
                        "checkpoint %s cannot be read (%s); trying an older one",
                        self._folder / str(step),
                        " ".join(str(error).split())[:200],
                    )
                else:
                    return found["tree"], found["metadata"]
        return None

    def _manager(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self._folder, options=self._options)
