"""The families that come with the project."""
import re

from .bottleneck import PARADIGMS
from .convnext import CONVNEXT_ARCHS, CONVNEXT_PARADIGMS, convnext_spec
from .families import Family, register_family
from .regnet import ARCHS, regnet_spec
from .resnet import EXPANSION, STAGE_BLOCKS, resnet_spec
from .t2t_vit import T2T_VIT_ARCHS, TRANSFORMER_PARADIGMS, t2t_vit_spec

_GRANULARITIES = ('spatial_granularity', 'channel_granularity')
_MASKERS = (*_GRANULARITIES, 'channel_masker', 'masker_reduction')
_BEST = dict(spatial_granularity=(4, 4, 2, 1), channel_granularity=(2, 2, 2, 2))


def _count_blocks(weights, pattern):
    """Blocks per stage: the pattern's groups are the stage and the block."""
    found = {tuple(map(int, m.groups())) for m in map(re.compile(pattern).fullmatch, weights) if m}
    stages = sorted({stage for stage, _ in found})
    return tuple(sum(s == stage for s, _ in found) for stage in stages)


def _stage_maskers(weights, first_blocks, conv1):
    """What the maskers of each stage's first block decide."""
    kinds, groups, masker = [], [], {}
    for block in first_blocks:
        logits = weights.get(f'{block}.masker.channel.fc2.weight')
        kinds.append(tuple(paradigm for paradigm in PARADIGMS if any(
            key.startswith(f'{block}.masker.{paradigm}.') for key in weights)) or None)
        width = len(weights[f'{block}.{conv1}.weight'])
        groups.append(1 if logits is None else max(2 * width // len(logits), 1))
        if logits is not None:
            kind = next((k for k, key in (('mlp', 'fc1'), ('conv_linear', 'conv'))
                         if f'{block}.masker.channel.{key}.weight' in weights), 'linear')
            masker = dict(masker=dict(channel=kind))
    return dict(paradigm=kinds, channel_granularity=tuple(groups), **masker)


def infer_resnet(weights):
    """Arguments of the `LAUDResNet` that has these weights; None if none has."""
    deep = 'stem.6.weight' in weights
    stem = [weights[key] for key in (('stem.0.weight', 'stem.6.weight') if deep else
                                     ('conv1.weight',)) if key in weights]
    if 'layer1.0.conv1.weight' not in weights or not stem:
        return None
    blocks = _count_blocks(weights, r'layer(\d+)\.(\d+)\.conv3\.weight')
    depth = next((d for d, n in STAGE_BLOCKS.items() if n[:len(blocks)] == blocks), None)
    width = len(weights['layer1.0.conv1.weight'])
    if depth is None or len(weights['layer1.0.conv3.weight']) != EXPANSION * width:
        return None
    return dict(depth=depth, num_stages=len(blocks), base_channels=width,
                out_indices=(len(blocks) - 1, ), stem_channels=len(stem[-1]),
                in_channels=stem[0].shape[1], deep_stem=deep,
                avg_down=any('.downsample.2.weight' in key for key in weights),
                **_stage_maskers(weights, [f'layer{i + 1}.0' for i in range(len(blocks))],
                                 'conv1'))


def infer_regnet(weights):
    """Arguments of the `LAUDRegNet` that has these weights; None if none has."""
    depths = _count_blocks(weights, r'trunk_output\.block(\d+)\.block\d+-(\d+)\.f\.c\.0\.weight')
    if len(depths) != 4 or 'stem.0.weight' not in weights:
        return None
    first = [f'trunk_output.block{i}.block{i}-0' for i in range(1, 5)]
    arch = dict(depths=depths, widths=tuple(len(weights[f'{b}.f.c.0.weight']) for b in first),
                group_widths=tuple(weights[f'{b}.f.b.0.weight'].shape[1] for b in first))
    if f'{first[0]}.f.se.fc1.weight' not in weights:
        arch['se_ratio'] = 0.0
    return dict(arch=arch, in_channels=weights['stem.0.weight'].shape[1],
                **_stage_maskers(weights, first, 'f.a.0'))


def infer_t2t_vit(weights, num_heads=None):
    """Arguments of the `LAUDT2TViT` that has these weights; None if none has.

    Heads are those of its head maskers, else T2T-ViT's, of 64 channels, unless given.
    """
    if 'cls_token' not in weights:
        return None
    depth = 1 + max(int(k.split('.')[1]) for k in weights if k.startswith('encoder.'))
    hidden, dims = weights['encoder.0.mlp.fc1.weight'].shape
    last, first = f'encoder.{depth - 1}.masker', 'tokens_to_token.attention1'
    if num_heads is None:
        masker = weights.get(f'{last}.head.fc.weight')
        num_heads = max(dims // 64, 1) if masker is None else len(masker)
    performer = f'{first}.w' in weights
    token_dim = len(weights[f'{first}.proj.weight' if performer
                            else f'{first}.attn.proj.weight'])
    side = round((weights['pos_embed'].shape[1] - 1)**0.5)
    return dict(
        arch=dict(embed_dims=dims, num_layers=depth, num_heads=num_heads,
                  feedforward_channels=hidden),
        img_size=side * 16, in_channels=len(weights[f'{first}.norm1.weight']) // 7**2,
        token_dim=token_dim, t2t_type='performer' if performer else 'transformer',
        qkv_bias='encoder.0.attn.qkv.bias' in weights,
        paradigm=tuple(p for p in TRANSFORMER_PARADIGMS
                       if f'{last}.{p}.fc.weight' in weights) or None)


def infer_convnext(weights):
    """Arguments of the `LAUDConvNeXt` that has these weights; None if none has."""
    if 'features.1.0.block.0.weight' not in weights:
        return None
    depths = _count_blocks(weights, r'features\.(\d+)\.(\d+)\.block\.0\.weight')
    first = [f'features.{2 * stage + 1}.0' for stage in range(len(depths))]
    channels = tuple(len(weights[f'{block}.block.0.weight']) for block in first)
    arch = next((name for name, own in CONVNEXT_ARCHS.items()
                 if own == dict(depths=depths, channels=channels)),
                dict(depths=depths, channels=channels))
    kinds = [tuple(p for p in CONVNEXT_PARADIGMS if f'{block}.masker.{p}.conv.weight' in weights)
             or None for block in first]
    settings = {} if f'{first[0]}.layer_scale' in weights else dict(layer_scale_init_value=0.0)
    return dict(
        arch=arch, in_channels=weights['features.0.0.weight'].shape[1], paradigm=kinds,
        out_indices=[i for i in range(len(depths)) if f'norm{i}.weight' in weights], **settings)


def _draw_skipping(rng):
    return dict(paradigm=rng.choice(PARADIGMS), channel_granularity=rng.choice((1, 2, 2, 4)),
                spatial_granularity=rng.choice(((4, 4, 2, 1), (8, 4, 7, 1), (2, 2, 2, 2),
                                                (7, 7, 7, 7))))


def _draw_resnet(rng):
    return dict(depth=rng.choice((50, 50, 101)), base_channels=rng.choice((32, 48, 64, 64, 72)),
                mask_before_norm=rng.random() < 0.2, **_draw_skipping(rng))


def _draw_regnet(rng):
    group = rng.choice((8, 16, 24))
    widths = tuple(group * round(width * rng.uniform(0.8, 1.8) / group) or group
                   for width in (48, 104, 208, 440))
    return dict(arch=dict(widths=widths, group_widths=group,
                          depths=(1, 3, rng.randint(4, 8), rng.randint(2, 6))),
                **_draw_skipping(rng))


def _draw_t2t_vit(rng):
    heads, dims = rng.choice((3, 4, 6)), rng.choice((32, 64))
    return dict(arch=dict(embed_dims=heads * dims, num_layers=rng.randint(3, 8),
                          num_heads=heads, feedforward_channels=3 * heads * dims),
                paradigm=rng.choice((*TRANSFORMER_PARADIGMS, TRANSFORMER_PARADIGMS)))


def _draw_convnext(rng):
    width = rng.choice((32, 48, 64, 96))
    return dict(arch=dict(depths=(rng.randint(1, 3), rng.randint(1, 3), rng.randint(2, 9),
                                  rng.randint(1, 3)),
                          channels=tuple(width * 2**stage for stage in range(4))),
                paradigm=rng.choice(CONVNEXT_PARADIGMS), gap_before_final_norm=False,
                spatial_granularity=rng.choice(((4, 4, 2, 1), (8, 4, 7, 1), (2, 2, 2, 2))))


register_family(Family(
    'LAUDResNet', 'LAUD-ResNet', {f'resnet{depth}': dict(depth=depth) for depth in STAGE_BLOCKS},
    resnet_spec, ('depth', 'in_channels', 'base_channels', 'stem_channels', 'num_stages',
                  'strides', 'dilations', 'style', 'deep_stem', 'avg_down', 'mask_before_norm',
                  *_MASKERS),
    PARADIGMS, _GRANULARITIES,
    # They report 4-4-2-1 for all but ResNet-101.
    {'': _BEST, 'resnet101': dict(_BEST, spatial_granularity=(8, 4, 7, 1))},
    infer_resnet, _draw_resnet))
register_family(Family(
    'LAUDRegNet', 'LAUD-RegNetY', {arch: dict(arch=arch) for arch in ARCHS}, regnet_spec,
    ('arch', 'in_channels', *_MASKERS), PARADIGMS, _GRANULARITIES, {'': _BEST}, infer_regnet,
    _draw_regnet))
register_family(Family(
    'LAUDT2TViT', 'LAUD-T2T-ViT', {arch: dict(arch=arch) for arch in T2T_VIT_ARCHS},
    t2t_vit_spec, ('arch', 'in_channels', 'token_dim', 't2t_type'), TRANSFORMER_PARADIGMS,
    infer=infer_t2t_vit, draw=_draw_t2t_vit))
register_family(Family(
    'LAUDConvNeXt', 'LAUD-ConvNeXt',
    {f'convnext_{arch}': dict(arch=arch) for arch in CONVNEXT_ARCHS}, convnext_spec,
    ('arch', 'in_channels', 'spatial_granularity'), CONVNEXT_PARADIGMS,
    ('spatial_granularity',), {'': dict(spatial_granularity=(4, 4, 2, 1))}, infer_convnext,
    _draw_convnext))
