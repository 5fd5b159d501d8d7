"""Becomes a Python command that Linux ends when its parent is killed: `python bound.py WORDS...`.

A program of its own, since forking to prepare the command would not be safe beside JAX's threads.
"""

import ctypes
import os
import signal
import sys

if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
