"""LAUDNet for mmdetection and mmpretrain: backbones that decide per image what to compute.

Importing the package is cheap (no torch). It makes `laud_mm::laud/<config>.py`
inheritable; registered classes are found by `type='laud_mm.<Class>'`.
"""
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .version import __version__

# Deployed networks run where mmengine is not.
if find_spec('mmengine') is not None:
    from mmengine.config.utils import MODULE2PACKAGE

    # mmengine finds a package's configs through its distribution, which in an
    # editable install is not where the code is. A module's own place always is.
    MODULE2PACKAGE['laud_mm'] = 'laud_mm.version'

__all__ = ['__version__', 'deploy']


def __getattr__(name: str) -> Any:
    if name == 'deploy':  # imports torch
        return import_module('laud_mm.deploy')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
