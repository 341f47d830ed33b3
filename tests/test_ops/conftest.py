"""Fixtures of the tests of the operations."""
import pytest

from . import emulation


@pytest.fixture(scope='session')
def device(tmp_path_factory):
    """A CPU that runs the CUDA kernels."""
    if emulation.COMPILER is None:
        pytest.skip('g++ is missing, which compiles the CUDA kernels for the emulated device')
    return emulation.build(tmp_path_factory.mktemp('emulation'))
