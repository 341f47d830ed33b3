"""What networks cost, in pure Python: op specs, architecture tables, FLOPs."""
from .bottleneck import CHANNEL_MASKERS, PARADIGMS, BottleneckShape
from .network import BlockSpec, NetworkSpec
from .opspec import OpSpec, Rates, dynamic_flops, static_flops
from .resnet import resnet_shapes, resnet_spec, resnet_stem_specs

__all__ = ['CHANNEL_MASKERS', 'PARADIGMS', 'BlockSpec', 'BottleneckShape', 'NetworkSpec',
           'OpSpec', 'Rates', 'dynamic_flops', 'resnet_shapes', 'resnet_spec',
           'resnet_stem_specs', 'static_flops']
