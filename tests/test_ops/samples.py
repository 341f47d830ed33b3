"""Good arguments of every operation, for tests that go over all of them."""
import torch

from laud_mm import ops


def channels_last(*shape):
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def sample_arguments():
    """Keyword arguments by operation; everything is listed, so that all results are defined."""
    x, out = channels_last(2, 12, 6, 7), channels_last(2, 20, 6, 7)
    index, count = ops.active_patches(torch.ones(2, 3, 4))  # patches of 2 x 2
    positions, found = ops.active_patches(torch.ones(2, 6, 7))
    weight1, weight3 = torch.randn(12, 12, 1, 1), torch.randn(20, 12, 1, 1)
    weight2, bias, bias3 = torch.randn(12, 12, 3, 3), torch.randn(12), torch.randn(20)
    rows = torch.randn(24, 4, 12)
    excitation = dict(weight1=torch.randn(5, 12), bias1=torch.randn(5),
                      weight2=torch.randn(12, 5), bias2=torch.randn(12))
    patches = dict(index=index, count=count, granularity=2)
    x8, out8 = x.byte(), out.byte()
    quantized = dict(bias=torch.randint(-99, 99, (12,), dtype=torch.int32),
                     multiplier=torch.rand(12) / 9)
    eight = torch.randint(-99, 99, (12, 12, 3, 3), dtype=torch.int8)
    mask = dict(mask_weight=torch.randn(12), mask_bias=torch.randn(1), window=2)
    return dict(
        compact=dict(mask=torch.ones(3, 5, dtype=torch.bool)),
        halo_positions=dict(patches, samples=2, height=6, width=7),
        patch_mask=dict(x=x, weight=mask['mask_weight'], bias=mask['mask_bias'], window=2),
        position_means=dict(x=x),
        masker_conv1x1=dict(mask, x=x, weight=weight1, bias=bias),
        pack_conv=dict(weight=weight2[:, :6], bias=bias, groups=2),
        pack_winograd=dict(weight=weight2, bias=bias),
        conv1x1_positions=dict(x=x, index=positions, count=found, weight=weight1, bias=bias),
        conv1x1_shortcut=dict(x=x, active=torch.ones(2, 3, 4, dtype=torch.bool), weight=weight1,
                              bias=bias, stride=1, granularity=2, sums=True),
        sums_mask=dict(sums=torch.randn(2, 12), whole=torch.randn(2, 3, 12),
                       listed=torch.randn(2, 3, 12), index=torch.arange(2).int(),
                       count=torch.ones(1).int(), weight=mask['mask_weight'],
                       bias=mask['mask_bias'], area=42),
        conv3x3_patches=dict(patches, y=x, weight=weight2, bias=bias),
        conv1x1_add_patches_=dict(patches, out=out, identity=out.clone(), rows=rows,
                                  weight=weight3, bias=bias3),
        excite_patches_=dict(patches, rows=rows, height=6, width=7, **excitation),
        pack_int8=dict(quantized, weight=eight),
        conv1x1_positions_int8=dict(quantized, x=x8, index=positions, count=found,
                                    weight=eight[..., :1, :1]),
        shortcut_int8=dict(quantized, x=x8, weight=eight[..., :1, :1]),
        conv3x3_patches_int8=dict(quantized, **patches, y=x8, weight=eight),
        conv1x1_add_patches_int8_=dict(
            patches, out=out8, identity=out8.clone(), rows=rows.byte(),
            weight=eight[..., :1, :1].repeat(2, 1, 1, 1)[:20],
            **{name: values.repeat(2)[:20] for name, values in quantized.items()}),
        patch_mask_int8=dict(x=x8, weight=mask['mask_weight'], bias=mask['mask_bias'], window=2),
        stem_int8=dict(quantized, x=torch.randn(2, 3, 9, 9), weight=eight[:, :3], scale=0.02,
                       zero=114, stride=2, pool=True),
        quantize=dict(x=x, scale=0.1),
        dequantize=dict(x=x8, scale=0.1),
        conv_map=dict(x=x, weight=weight2[:, :6], bias=bias, stride=2, groups=2),
        patchify=dict(x=x, weight=weight2[..., :2, :2], bias=bias),
        depthwise_norm_patches=dict(patches, x=x, taps=torch.randn(7, 7, 12), bias=bias,
                                    eps=1e-6),
        mlp_add_patches_=dict(
            patches, out=x, identity=x.clone(), rows=rows, weight1=weight3, bias1=bias3,
            weight2=weight3.transpose(0, 1).contiguous(), bias2=bias),
        stem_conv=dict(x=x, weight=weight2, bias=bias, stride=2, pool=True),
        max_pool=dict(x=x, kernel_size=3, stride=2),
        average_pool=dict(x=x, kernel_size=2),
        rectify_=dict(y=x.clone()),
        gather_tokens=dict(x=torch.randn(2, 5, 8), index=torch.tensor([0, 7])),
        scatter_add_tokens_=dict(out=torch.randn(2, 5, 8), index=torch.tensor([0, 7]),
                                 rows=torch.randn(2, 8)))


def by_place(name, arguments):
    """Arguments in the order of the operation's schema: positional ones, and the rest by name."""
    schema = getattr(torch.ops.laud_mm, name).default._schema
    place = [arguments[a.name] for a in schema.arguments if a.name in arguments
             and not a.has_default_value()]
    named = {a.name: arguments[a.name] for a in schema.arguments if a.name in arguments
             and a.has_default_value()}
    assert len(place) + len(named) == len(arguments), 'sample of another operation'
    return tuple(place), named
