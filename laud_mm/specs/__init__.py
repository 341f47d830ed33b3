"""What networks cost, in pure Python: op specs, architecture tables, FLOPs."""
from . import networks  # noqa: F401 registers the families
from .bottleneck import CHANNEL_MASKERS, PARADIGMS, BottleneckShape
from .configs import (
    configured_size,
    find_backbone_config,
    is_detector,
)
from .convnext import (
                       ConvNeXtShape,
                       DownsampleShape,
                       convnext_shapes,
                       convnext_spec,
                       convnext_stem_specs,
)
from .families import (
                       FAMILIES,
                       NETWORKS,
                       Family,
                       backbone_spec,
                       family_of,
                       network_spec,
                       register_family,
)
from .network import BlockSpec, NetworkSpec
from .opspec import OpSpec, Rates, Size, dynamic_flops, static_flops
from .program import Case, Loop, Program
from .regnet import regnet_shapes, regnet_spec, regnet_stem_specs
from .resnet import resnet_shapes, resnet_spec, resnet_stem_specs
from .steps import STEP_KINDS, Step, StepCall, StepKind, Work, dense_steps
from .t2t_vit import (
                       TRANSFORMER_PARADIGMS,
                       TransformerShape,
                       t2t_stem_specs,
                       t2t_vit_shapes,
                       t2t_vit_spec,
                       token_grid,
)

__all__ = ['BlockSpec', 'BottleneckShape', 'CHANNEL_MASKERS', 'Case', 'ConvNeXtShape',
           'DownsampleShape', 'FAMILIES', 'Family', 'Loop',
           'NETWORKS', 'NetworkSpec', 'OpSpec', 'PARADIGMS', 'Program', 'Rates', 'STEP_KINDS',
           'Size', 'Step', 'StepCall', 'StepKind', 'TRANSFORMER_PARADIGMS', 'TransformerShape',
           'Work', 'backbone_spec', 'configured_size', 'convnext_shapes', 'convnext_spec',
           'convnext_stem_specs', 'dense_steps', 'dynamic_flops', 'family_of',
           'find_backbone_config', 'is_detector', 'network_spec',
           'token_grid', 'regnet_shapes', 'regnet_spec', 'regnet_stem_specs', 'register_family',
           'resnet_shapes', 'resnet_spec', 'resnet_stem_specs', 'static_flops', 't2t_stem_specs',
           't2t_vit_shapes', 't2t_vit_spec']
