"""Registered LAUD backbones."""
from .base import LAUDBackbone
from .laud_regnet import LAUDRegNet, LAUDRegNetBottleneck
from .laud_resnet import LAUDBottleneck, LAUDResNet

__all__ = ['LAUDBackbone', 'LAUDBottleneck', 'LAUDRegNet', 'LAUDRegNetBottleneck', 'LAUDResNet']
