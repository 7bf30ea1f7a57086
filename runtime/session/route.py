"""What a session will do with a request, and why, before it does it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """How a request is carried out.

    Attributes:
        graph: that is run; None if nothing has to be computed.
        device: "cpu" or "cuda:N".
        threads: of the CPU; None for ONNX Runtime's choice, one per core.
        blocks: tokens in each block that is run.
        why: why this graph.
    """

    graph: str | None
    device: str
    threads: int | None
    blocks: tuple[int, ...]
    why: str

    def __str__(self) -> str:
        """Return it as a sentence."""
        if self.graph is None:
            return f"Nothing is run: {self.why}"
        threads = "a thread per core" if self.threads is None else "1 thread" if self.threads == 1 else \
            f"{self.threads} threads"  # fmt: skip
        where = f"cpu with {threads}" if self.device == "cpu" else self.device
        tokens = f"{sum(self.blocks)} tokens"
        parts = "at once" if len(self.blocks) == 1 else f"in {len(self.blocks)} blocks of at most {max(self.blocks)}"
        return f"{self.graph} on {where}, {tokens} {parts}: {self.why}"
