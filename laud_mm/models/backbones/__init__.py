"""Registered LAUD backbones."""
from .base import LAUDBackbone
from .laud_convnext import ConvNeXtBlock, LAUDConvNeXt
from .laud_regnet import LAUDRegNet, LAUDRegNetBottleneck
from .laud_resnet import LAUDBottleneck, LAUDResNet
from .laud_t2t_vit import LAUDT2TViT

__all__ = ['ConvNeXtBlock', 'LAUDBackbone', 'LAUDBottleneck', 'LAUDConvNeXt', 'LAUDRegNet',
           'LAUDRegNetBottleneck', 'LAUDResNet', 'LAUDT2TViT']
