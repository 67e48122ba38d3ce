"""Equal calls, equal bytes: deterministic algorithms at a stated thread count."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Deterministic algorithms at a fixed thread count; both settings as found afterwards."""
    before = torch.get_num_threads()
    mode, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        torch.set_num_threads(before)
