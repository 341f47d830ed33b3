"""LAUDNet for mmdetection and mmpretrain: backbones that decide per image what to compute.

Importing the package is cheap (no torch). It makes `laud_mm::laud/<config>.py`
inheritable; registered classes are found by `type='laud_mm.<Class>'`.
"""
from mmengine.config.utils import MODULE2PACKAGE

from .version import __version__

# mmengine finds a package's configs through its distribution, which in an
# editable install is not where the code is. A module's own place always is.
MODULE2PACKAGE['laud_mm'] = 'laud_mm.version'

__all__ = ['__version__']
