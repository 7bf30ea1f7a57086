"""Values that belong to one caller: a thread, or an asyncio task if one runs."""

import sys
import threading
from contextvars import ContextVar, Token
from typing import Any, Generic, TypeAlias, TypeVar

Value = TypeVar("Value")

Reset: TypeAlias = Token[tuple[object, Any] | None]
"""What `PerCaller.reset` takes."""


class PerCaller(Generic[Value]):
    """A value that a caller has set for itself, and that no other caller has.

    A task that is started meanwhile copies the context, and must not see the value: hence the caller beside it.

    Args:
        name: Name of the value, for debuggers.
    """

    def __init__(self, name: str) -> None:
        self._variable: ContextVar[tuple[object, Value] | None] = ContextVar(name, default=None)

    def get(self) -> Value | None:
        """Return the value of the caller; None if it has none."""
        found = self._variable.get()
        return found[1] if found is not None and found[0] == _caller() else None

    def is_in_context(self, value: Value) -> bool:
        """Tell whether the context holds this value, whoever has set it."""
        found = self._variable.get()
        return found is not None and found[1] is value

    def set(self, value: Value) -> Reset:
        """Set the value of the caller, and return what `reset` takes."""
        return self._variable.set((_caller(), value))

    def reset(self, token: Reset) -> None:
        """Give the caller the value that it had before `set`.

        A variable that is set to None instead would stay in the thread's context, one for each session.
        """
        try:
            self._variable.reset(token)
        except ValueError:  # it was set in another context, of which this one is a copy
            self._variable.set(None)


def _caller() -> object:
    asyncio = sys.modules.get("asyncio")  # a program that has not imported it has no tasks
    try:
        task = asyncio.current_task() if asyncio else None
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return threading.get_ident(), task
