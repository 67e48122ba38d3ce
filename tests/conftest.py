"""What every test shares: one thread per worker, reproducible properties, and the place of the checkout."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is first imported: pytest runs one worker per core, and a worker with its own thread pool slows the others.
for pool in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[pool] = "1"

# Examples are drawn from the test itself, so that red stays red; the first example pays for imports, so no deadline.
settings.register_profile("circuits", derandomize=True, deadline=None, database=None)
settings.load_profile("circuits")


def pytest_report_header() -> str:
    """Which copy of the package is under test: the installed one, where CI looks."""
    found = find_spec("circuits")
    return f"circuits from {found.origin if found else 'nowhere: pip install .'}"


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the repository, for tests of what is in it beside the package."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Run as a user does: without the run-time shape checks of the tests, so that the library's own sentences answer."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
