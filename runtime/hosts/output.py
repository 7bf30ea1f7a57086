"""`HostOutput`, what a call of a host returns."""

from collections.abc import Iterator, Mapping

from ..arrays.tensor import Array


class HostOutput(Mapping[str, Array]):
    """The outputs of the host by name, in its order; `output.logits` is `output["logits"]`.

    The arrays are numpy arrays. An output whose name is not an identifier, such as "present.0.key", is reached by its
    name only.
    """

    __slots__ = ("_arrays",)

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = dict(arrays)

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __getattr__(self, name: str) -> Array:
        """Return an output by its name.

        Raises:
            AttributeError: The host does not have this output; the message lists those that it has.
        """
        arrays: dict[str, Array] = object.__getattribute__(self, "_arrays")
        if name not in arrays:
            raise AttributeError(f"The host does not have the output {name}; it has {', '.join(arrays)}.")
        return arrays[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(name for name in self._arrays if name.isidentifier())]

    def __reduce__(self) -> tuple[type["HostOutput"], tuple[dict[str, Array]]]:
        return HostOutput, (self._arrays,)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={array.shape} {array.dtype}" for name, array in self._arrays.items())
        return f"HostOutput({shapes})"
