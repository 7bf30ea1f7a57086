"""Values that belong to one caller: a thread, or an asyncio task if one runs."""

import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass(eq=False)
class _Entry(Generic[Value]):
    caller: object
    value: Value
    token: "Token[_Entry[Value] | None] | None" = None


class PerCaller(Generic[Value]):
    """A value that a caller has for itself, and that no other caller has.

    A task that is started meanwhile copies the context, and must not see the value: hence the caller beside it.

    Args:
        name: Name of the value, for debuggers.
    """

    def __init__(self, name: str) -> None:
        self._variable: ContextVar[_Entry[Value] | None] = ContextVar(name, default=None)

    def get(self) -> Value | None:
        """Return the value of the caller; None if it has none."""
        found = self._variable.get()
        return found.value if found is not None and found.caller == _caller() else None

    def get_or_make(self, make: Callable[[], Value]) -> Value:
        """Return the value of the caller, which gets a new one if it has none."""
        value = self.get()
        if value is None:
            entry = _Entry(_caller(), make())
            entry.token = self._variable.set(entry)
            value = entry.value
        return value

    def remove(self, value: Value) -> None:
        """Take a value out of this context, if it is there: it may refer to the task, and the task's context to it.

        A variable that is set to None instead would stay in the thread's context, one for each session.
        """
        found = self._variable.get()
        if found is None or found.value is not value or found.token is None:
            return
        token, found.token = found.token, None
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
