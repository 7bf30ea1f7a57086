"""Keeps the ONNX Runtime sessions of a forked process from being destroyed in the child.

A child has none of its parent's threads but the one that forked. A session that is destroyed there waits for its
threads, and the child hangs or crashes: when the session is collected, or when Python ends. So a child never destroys
the sessions of its parent. Their memory is shared with the parent until either writes to it.
"""

import ctypes
import os
import threading
import weakref
from typing import Any

_sessions: "weakref.WeakSet[Any]" = weakref.WeakSet()
_kept: list[Any] = []
_lock = threading.Lock()  # no other thread changes the set while the process forks


def survive_fork(session: Any) -> None:
    """Never destroy this session in a process that is forked from now on."""
    with _lock:
        _sessions.add(session)


def _before() -> None:
    _lock.acquire()
    _kept.extend(_sessions)  # also those that only another thread refers to, which does not exist in the child


def _in_parent() -> None:
    _kept.clear()
    _lock.release()


def _in_child() -> None:
    for session in _kept:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))  # modules are emptied at exit: only a count is not
    _kept.clear()
    _lock.release()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
