"""Classifiers of the `laud_mm` scope; the only models that need mmpretrain."""
from laud_mm.utils.stack import require_packages

require_packages('laud_mm.models.classifiers', 'mmengine', 'mmcv', 'mmpretrain')

from .distillation import DistillationClassifier

__all__ = ['DistillationClassifier']
