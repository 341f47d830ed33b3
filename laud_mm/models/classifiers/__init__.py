"""Classifiers of the `laud_mm` scope; the only models that need mmpretrain."""
from .distillation import DistillationClassifier

__all__ = ['DistillationClassifier']
