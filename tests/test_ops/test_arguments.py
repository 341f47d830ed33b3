"""Bad arguments are refused by name and value, before anything is read or written."""
import pytest
import torch

from laud_mm import ops

from .samples import sample_arguments

pytestmark = pytest.mark.skipif(not ops.has_kernel('cpu'), reason='the operations are not compiled')

# What is wrong with one argument, whatever the operation.
WRONG = {
    'int map': (('x', 'y', 'out', 'identity'), lambda t: t.int(), 'float|uint8'),
    'layout': (('x', 'y', 'out', 'identity', 'residual'), lambda t: t.transpose(1, -1), None),
    'no positions': (('x', 'y'), lambda t: t[..., :0], None),
    'other type': (('weight', 'bias', 'identity', 'residual', 'rows'), lambda t: t.double(), None),
    'too short': (('bias', 'bias1', 'bias2', 'bias3', 'mask_bias', 'mask_weight', 'rows'),
                  lambda t: t[:0], None),
    'negative count': (('count',), lambda t: -t, 'got -'),
    'large count': (('count',), lambda t: t + 1, r'from 0 to \d+, got \d+'),
    'int64 count': (('count',), lambda t: t.long(), 'int32'),
    'index too large': (('index', 'samples'), lambda t: t + 100, r'from 0 to \d+.* got 10\d'),
    'negative index': (('index', 'samples'), lambda t: t - 1, 'from 0 to .* got -1'),
    'floating index': (('index', 'samples'), lambda t: t.float(), 'int'),
    'zero': (('granularity', 'stride', 'dilation', 'window', 'height', 'width', 'groups'),
             lambda _: 0, 'must be a positive int, got 0'),
    'negative': (('granularity', 'stride', 'dilation', 'window', 'groups', 'height'),
                 lambda _: -3, 'must be a positive int, got -3'),
}
DEFAULTS = dict(conv1x1_positions=dict(stride=1), conv3x3_patches=dict(
    stride=1, dilation=1, groups=1), halo_positions=dict(stride=1, dilation=1))
# Arguments whose type or size is free, or that other checks name.
FREE = {('patch_mask', 'weight'), ('patch_mask', 'bias'), ('pack_conv', 'weight'),
        ('pack_winograd', 'weight'), ('pack_conv', 'bias'), ('pack_winograd', 'bias'),
        ('excite_patches_', 'rows'), ('patch_mask_int8', 'weight'), ('patch_mask_int8', 'bias')}
ANY_LAYOUT = ('gather_tokens', 'scatter_add_tokens_', 'stem_conv', 'stem_int8', 'quantize',
              'dequantize')
ON_GPUS = ('conv1x1_shortcut', 'sums_mask')  # references, which check nothing, serve a CPU
ANY_SIZE = ('gather_tokens', 'quantize', 'dequantize')


def cases():
    for name, good in sample_arguments().items():
        if name in ON_GPUS:
            continue
        for what, (arguments, change, message) in WRONG.items():
            for argument in arguments:
                known = {**DEFAULTS.get(name, {}), **good}
                if argument not in known or (what == 'int map' and name == 'scatter_add_tokens_'):
                    continue
                if argument == 'samples' and not isinstance(known[argument], torch.Tensor):
                    continue
                if what == 'other type' and (name, argument) in FREE:
                    continue
                if what == 'layout' and name in ANY_LAYOUT \
                        or what == 'no positions' and name in ANY_SIZE:
                    continue
                yield pytest.param(name, argument, change, message, id=f'{name}-{argument}-{what}')


@pytest.mark.parametrize('name, argument, change, message', cases())
def test_a_bad_argument_is_named(name, argument, change, message):
    good = {**DEFAULTS.get(name, {}), **sample_arguments()[name]}
    bad = dict(good, **{argument: change(good[argument])})
    with pytest.raises(RuntimeError, match=argument.replace('_', '.')) as error:
        ops.OPERATIONS[name](**bad)
    if message:
        error.match(message)


@pytest.mark.parametrize('change, message', [
    (dict(packed=None), 'winograd needs packed .*no packed'), (dict(stride=2), 'got stride 2'),
    (dict(dilation=2), 'dilation 2'), (dict(groups=2), 'groups 2'),
    (dict(packed=torch.zeros(5)), r'packed must hold \d+ .*pack_winograd.*got 5'),
    (dict(channel_index=torch.zeros(2, 12, dtype=torch.int32),
          channel_count=torch.zeros(2, dtype=torch.int32)), 'channel_index')], ids=str)
def test_winograd_says_what_it_needs(change, message):
    good = sample_arguments()['conv3x3_patches']
    packed = ops.pack_winograd(good['weight'], good['bias'])
    change = dict(change)
    if change.get('groups'):
        change['weight'] = good['weight'][:, :6].contiguous()
    if change.get('stride'):  # fewer patches to list
        change['index'], change['count'] = ops.active_patches(torch.ones(2, 2, 2))
    with pytest.raises(RuntimeError, match=message):
        ops.conv3x3_patches(**{**good, 'packed': packed, 'winograd': True, **change})


@pytest.mark.parametrize('change, message', [
    (dict(channel_count=None), 'channel_index and channel_count must be given together'),
    (dict(group_size=5), 'group_size must divide 12 channels, got 5'),
    (dict(group_size=0), 'group_size must be a positive int, got 0'),
    (dict(channel_index=torch.full((2, 6), 6)), 'channel_index .* ascending .* 5, got 6'),
    (dict(channel_index=torch.full((2, 6), -1)), 'channel_index .* ascending .* 5, got -1'),
    (dict(channel_count=torch.tensor([3, 7])), 'channel_count .* 0 to 6, got 7 of sample 1'),
    (dict(channel_count=torch.tensor([-1, 3])), 'channel_count .* 0 to 6, got -1 of sample 0'),
    (dict(channel_index=torch.zeros(2, 5)), r'channel_index must have shape \[2, 6\]'),
    (dict(channel_count=torch.zeros(3)), r'channel_count must have shape \[2\]')], ids=str)
@pytest.mark.parametrize('name', ['conv1x1_positions', 'conv3x3_patches', 'conv1x1_add_patches_'])
def test_bad_channel_lists_are_named(name, change, message):
    index, count = ops.compact(torch.rand(2, 6) < 0.5)
    change = {k: v.int() if isinstance(v, torch.Tensor) else v for k, v in change.items()}
    good = dict(channel_index=index, channel_count=count, group_size=2)
    with pytest.raises(RuntimeError, match=message):
        ops.OPERATIONS[name](**{**sample_arguments()[name], **good, **change})


@pytest.mark.parametrize('name, change, message', [
    ('halo_positions', dict(samples=-1), 'samples must be from 0 .*got -1'),
    ('halo_positions', dict(height=2**40), 'height must be at most .*got 1099511627776'),
    ('halo_positions', dict(samples=2**20, height=2**20), r'2\^31 - 1 positions'),
    ('compact', dict(mask=torch.ones(3, 5)), 'mask must be bool .*got Float'),
    ('compact', dict(mask=torch.ones(5).bool()), 'mask must be bool .*shape'),
    ('scatter_add_tokens_', dict(index=torch.tensor([4, 4])), 'index must list each .*got 4 twice'),
    ('conv3x3_patches', dict(groups=5), 'groups must divide 12 inputs and 12 outputs, got 5'),
    ('conv3x3_patches', dict(shifts=torch.zeros(2, 12, 9)), 'shifts needs channel_index'),
    ('conv1x1_add_patches_', dict(shifts=torch.zeros(2, 20)), 'shifts needs channel_index'),
    ('conv1x1_add_patches_', dict(weight=torch.zeros(19, 12, 1, 1), bias=torch.zeros(19)),
     'weight must have 20 outputs .*got 19')], ids=str)
def test_arguments_that_contradict_each_other_are_named(name, change, message):
    with pytest.raises(RuntimeError, match=message):
        ops.OPERATIONS[name](**{**sample_arguments()[name], **change})
