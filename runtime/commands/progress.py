"""The progress bar of commands that run an SAE on a file of tokens."""

import contextlib
from collections.abc import Callable, Iterator

from tqdm import tqdm


@contextlib.contextmanager
def token_progress() -> Iterator[Callable[[int, int], None]]:
    """Yield a function that is called with the number of tokens done and the total, and moves a bar on a terminal."""
    with tqdm(unit="token", unit_scale=True, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
