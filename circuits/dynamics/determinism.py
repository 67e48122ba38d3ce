"""Equal calls, equal bytes: deterministic algorithms at a stated thread count."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Without it torch refuses deterministic matrix products on a GPU; a user's own value stands."""


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Deterministic algorithms at a fixed thread count; all settings as found afterwards."""
    before, workspace = torch.get_num_threads(), os.environ.get(WORKSPACE)
    mode, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.set_num_threads(threads)
        os.environ.setdefault(WORKSPACE, ":4096:8")
        torch.use_deterministic_algorithms(True)
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        torch.set_num_threads(before)
        if workspace is None:
            os.environ.pop(WORKSPACE, None)
