"""In evaluation a block gives what its modules, as they are now, would give; over all networks."""
import copy
import pickle
import threading
import warnings
from contextlib import nullcontext
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.analysis import get_model_complexity_info
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models._utils import IntermediateLayerGetter

from laud_mm.models.backbones import LAUDT2TViT
from laud_mm.models.dynamic import force_rate

from ..conftest import TINY_REGNET, TINY_T2T

CNN = [(arch, dict(paradigm=p)) for arch in (50, TINY_REGNET)
       for p in ('layer', 'spatial', 'channel', 'both', None)]
CNN += [(50, dict(paradigm='channel', mask_before_norm=True))]
CNN += [(50, dict(paradigm=p, deep_stem=True, avg_down=True)) for p in ('spatial', None)]
T2T = [(TINY_T2T, dict(paradigm=p)) for p in ('token', 'head', 'layer', ('token', 'head', 'layer'),
                                              None)]


def named(cases):
    def name(arch, kwargs):
        kind = 'resnet' if arch == 50 else 't2t' if arch is TINY_T2T else 'regnet'
        return '-'.join([kind, str(kwargs['paradigm']), *(k for k in kwargs if k != 'paradigm')])
    return pytest.mark.parametrize('arch, kwargs', cases, ids=[name(*c) for c in cases])


NETS, CNNS, T2TS = named(CNN + T2T), named(CNN), named(T2T)


def run(net, x, rate=0.6, **execution):
    """Outputs at a forced rate, of the decisions that a seed draws."""
    with torch.no_grad(), force_rate(net, rate), net.executing(**execution):
        return net(x)


def rebuilt(make_net, net, arch, kwargs):
    """The net made anew from its state dict."""
    twin = make_net(arch, **kwargs)
    twin.load_state_dict(copy.deepcopy(net.state_dict()))
    return twin


def images(size=64, batch=2):
    return torch.randn(batch, 3, size, size)


# Weights.

def scale_data(net):
    for p in net.parameters():
        p.data.mul_(0.5)


def scale_numpy(net):
    for p in net.parameters():
        view = p.detach().numpy()
        view *= 0.5


def scale_statistics(net):
    for name, buffer in net.named_buffers():
        if 'running' in name:
            buffer.data.mul_(1.7)


def move_into_one_vector(net):
    torch.nn.utils.vector_to_parameters(
        0.5 * torch.nn.utils.parameters_to_vector(net.parameters()), net.parameters())


def assign(net):
    net.load_state_dict({k: v * 0.5 if v.is_floating_point() else v
                         for k, v in net.state_dict().items()}, assign=True)


def swap_parameters(net):
    for module in net.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                setattr(module, name, nn.Parameter(p.detach() * 0.5))


class DataSGD(torch.optim.Optimizer):
    """Writes single values through `Tensor.data`."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group['params']:
                p.data.view(-1)[p.numel() // 2] += 3.0


def step_through_data(net):
    DataSGD(net.parameters(), {}).step()


@pytest.mark.parametrize('write', [
    scale_data, scale_numpy, scale_statistics, move_into_one_vector, assign, swap_parameters,
    step_through_data], ids=lambda f: f.__name__)
@NETS
def test_every_write_is_seen(make_net, write, arch, kwargs):
    net, x = make_net(arch, **kwargs), images()
    before = run(net, x)
    write(net)
    after = run(net, x)
    assert_close(after, run(rebuilt(make_net, net, arch, kwargs), x), rtol=1e-5, atol=1e-5)
    if write is not scale_statistics or arch is not TINY_T2T:
        assert any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(before, after))


@NETS
def test_a_moving_average_is_evaluated_as_it_is(make_net, arch, kwargs):
    net, x = make_net(arch, **kwargs), images()
    average = ExponentialMovingAverage(net, momentum=0.3)
    average.eval()
    run(average.module, x)
    for _ in range(3):
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(0.9)
        average.update_parameters(net)
        assert_close(run(average.module, x),
                     run(rebuilt(make_net, average.module, arch, kwargs), x),
                     rtol=1e-5, atol=1e-5)


def set_eps(net):
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            module.eps = 0.5


def set_strides(net):
    for block in net.blocks():
        conv = dict(block.named_modules()).get('conv2')
        if conv is not None and conv.stride == (2, 2):
            conv.stride = (1, 1)
            for module in block.downsample:
                if isinstance(module, nn.AvgPool2d):
                    module.kernel_size = module.stride = 1
                elif isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)


def set_dilation(net):
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.dilation = module.padding = (2, 2)


def prune_all(net):
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            prune.l1_unstructured(module, 'weight', 0.4)


def prune_for_good(net):
    prune_all(net)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            prune.remove(module, 'weight')


def normalise_weights(net):
    for module in list(net.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            parametrizations.weight_norm(module)
            with torch.no_grad():
                module.parametrizations.weight.original0.mul_(0.7)


class LowRank(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear, self.weight = linear, linear.weight
        self.down = nn.Linear(linear.in_features, 2, bias=False)
        self.up = nn.Linear(2, linear.out_features, bias=False)

    def forward(self, x):
        return self.linear(x) + self.up(self.down(x))


def add_low_rank(net):
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, LowRank(child))


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 0.5 * super().forward(x)


def subclass_convs(net):
    for module in net.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = Scaled


def patch_forwards(net):
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            module.forward = lambda x, forward=module.forward: 0.5 * forward(x)


def hook_outputs(net):
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda m, args, y: 0.5 * y)


def hook_inputs(net):
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            module.register_forward_pre_hook(lambda m, args: (0.5 * args[0],))


def drop_norms(net):
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (nn.BatchNorm2d, nn.LayerNorm)):
                setattr(module, name, nn.Identity())


def fuse_norms(net):
    fuse_conv_bn(net)


def bias_convs(net):
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.bias = nn.Parameter(torch.randn(module.out_channels))


def group_norms(net):
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(1, child.num_features))


def global_hook(net):
    net.handle = torch.nn.modules.module.register_module_forward_hook(
        lambda m, args, y: 0.5 * y if type(m) in (nn.Conv2d, nn.Linear) else None)


CHANGES = [set_eps, set_strides, set_dilation, prune_all, prune_for_good, normalise_weights,
           add_low_rank, subclass_convs, patch_forwards, hook_outputs, hook_inputs, drop_norms,
           fuse_norms, bias_convs, group_norms, global_hook]


@pytest.mark.filterwarnings('ignore:.*computed module by module')
@pytest.mark.parametrize('warm', [True, False], ids=['warm', 'cold'])
@pytest.mark.parametrize('change', CHANGES, ids=lambda f: f.__name__)
@NETS
def test_modules_count_as_they_are(make_net, arch, kwargs, change, warm):
    net, x = make_net(arch, **kwargs), images()
    if change in (set_strides,) and arch != 50:
        pytest.skip('only of a ResNet')
    if change is set_strides and kwargs['paradigm'] in ('spatial', 'both'):
        pytest.skip('patches are of the size that the net was built for: torch refuses others')
    if kwargs.get('mask_before_norm') and change is bias_convs:
        pytest.skip('a bias before a norm may be masked or not')
    before = run(net, x) if warm else None
    change(net)
    try:
        after = run(net, x)
        masked = run(net, x, mode='masked')
        with net.as_static():
            static, static_masked = run(net, x), run(net, x, mode='masked')
    finally:
        if hasattr(net, 'handle'):
            net.handle.remove()
    assert_close(after, masked, rtol=1e-4, atol=1e-4)
    assert_close(static, static_masked, rtol=1e-4, atol=1e-4)
    if warm and before[0].shape == after[0].shape and change not in (fuse_norms, set_strides):
        changed = any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(before, after))
        assert changed or arch is TINY_T2T or change is add_low_rank


@CNNS
def test_fused_norms_leave_the_numbers_as_they_are(make_net, arch, kwargs):
    net, x = make_net(arch, **kwargs), images()
    before = run(net, x)
    fused = fuse_conv_bn(copy.deepcopy(net))
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # identities and biases fold: it still skips
        assert_close(run(fused, x), before, rtol=1e-4, atol=1e-4)
    assert_close(run(fused, x, mode='masked'), before, rtol=1e-4, atol=1e-4)


def test_torchs_fusion_and_quantisation_run(make_net):
    net, x = make_net(50, paradigm='channel'), images()
    before = run(net, x)
    names = [[f'{name}.{pair[0]}', f'{name}.{pair[1]}'] for name, m in net.named_modules()
             if hasattr(m, 'conv3') for pair in (('conv1', 'bn1'), ('conv2', 'bn2'),
                                                 ('conv3', 'bn3'))]
    fused = torch.ao.quantization.fuse_modules(copy.deepcopy(net), names)
    assert_close(run(fused, x), before, rtol=1e-4, atol=1e-4)
    torch.backends.quantized.engine = 'fbgemm'
    for arch, kwargs in ((50, dict(paradigm='channel')), (TINY_T2T, dict(paradigm='layer'))):
        net = make_net(arch, **kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
            after = run(quantised, x)
        for a, b in zip(after, run(net, x)):
            assert (a - b).abs().mean() < 0.1 * b.abs().mean() + 1e-2


@NETS
def test_pruned_nets_load_and_count_again_without_their_hooks(make_net, arch, kwargs):
    net, x = make_net(arch, **kwargs), images()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        prune_all(net)
        run(net, x)
        net.load_state_dict({k: v * 0.5 if k.endswith('weight_orig') else v
                             for k, v in net.state_dict().items()})
        pruned = run(net, x)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            prune.remove(module, 'weight')
    assert_close(run(rebuilt(make_net, net, arch, kwargs), x), pruned, rtol=1e-4, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # plain again
        assert_close(run(net, x), pruned, rtol=1e-4, atol=1e-4)


@NETS
def test_what_is_not_plain_is_named_once(make_net, arch, kwargs):
    net, x = make_net(arch, **kwargs), images()
    block = net.blocks()[-1]
    name, conv = next((n, m) for n, m in block.named_modules()
                      if isinstance(m, (nn.Conv2d, nn.Linear)))
    handle = conv.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match=rf'{block.shape.name} \({name} has hooks\): computed mod'):
        run(net, x)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run(net, x)
        handle.remove()
        run(net, x)
    assert block.weights()[1] is None


# Modules' own flags.

def norms_train(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()


def one_stage_trains(net):
    net.blocks()[-1].train()
    for masker in net.maskers():
        masker.eval()


def one_norm_trains(net):
    next(m for m in net.blocks()[0].modules() if isinstance(m, nn.BatchNorm2d)).train()


@pytest.mark.filterwarnings('ignore:.*computed module by module')
@pytest.mark.parametrize('change', [norms_train, one_stage_trains, one_norm_trains],
                         ids=lambda f: f.__name__)
@CNNS
def test_norms_in_training_use_their_batch(make_net, arch, kwargs, change):
    net, x = make_net(arch, dtype=torch.float64, **kwargs), images().double()
    run(net, x)
    twin = copy.deepcopy(net)
    for model in (net, twin):
        change(model)
    after = run(net, x)
    assert_close(after, run(twin, x, mode='masked'), rtol=1e-7, atol=1e-7)
    assert_close(dict(net.named_buffers()), dict(twin.named_buffers()), rtol=1e-7, atol=1e-7)
    assert any(int(m.num_batches_tracked) for m in net.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.filterwarnings('ignore:.*computed module by module')
@pytest.mark.parametrize('drops', ['drop_rate', 'attn_drop_rate', 'drop_path_rate'])
@T2TS
def test_dropout_drops_where_it_is_on(make_net, arch, kwargs, drops):
    net, x = make_net(arch, **kwargs, **{drops: 0.5}), images(batch=4)
    before = run(net, x)
    assert_close(run(net, x), before)
    for module in net.modules():
        if 'Drop' in type(module).__name__ or type(module).__name__ == 'Attention':
            module.train()
    torch.manual_seed(1)
    after = run(net, x)
    torch.manual_seed(1)
    assert_close(after, run(net, x, mode='masked'), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after[0], before[0], atol=1e-3)


# Hooks, and tensors that they keep.

@pytest.mark.filterwarnings('ignore:.*computed module by module')
@pytest.mark.parametrize('static', [False, True], ids=['dynamic', 'static'])
@NETS
def test_every_module_that_is_called_tells_its_hooks(make_net, arch, kwargs, static):
    """Of blocks and all inside them; in evaluation as in the masked executor."""
    def heard(**execution):
        seen = []
        own = copy.deepcopy(net)
        for name, module in own.named_modules():
            module.register_forward_hook(lambda m, args, y, name=name: seen.append(name))
        with own.as_static() if static else nullcontext():
            run(own, x, **execution)
        return seen
    net, x = make_net(arch, **kwargs), images()
    seen = heard()
    assert seen == heard(mode='masked')
    inside = {name for name, m in net.named_modules() if not list(m.children())
              and 'masker' not in name and 'attention' not in name}
    if arch is TINY_T2T:
        inside -= {name for name in inside if name.startswith('tokens_to_token')}
        inside -= set() if net.out_indices[-1] == net.num_stages - 1 else {'norm'}
    assert inside <= set(seen)


@NETS
def test_stages_and_blocks_give_tensors_and_can_be_called(make_net, arch, kwargs):
    net, x = make_net(arch, **kwargs), images()
    seen = []
    for block in net.blocks():
        block.register_forward_hook(lambda m, args, y: seen.append((args[0], y)))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('error')  # hooks on blocks themselves do not hinder
        net(x)
        assert len(seen) == len(net.blocks()) == len(net.record.blocks)
        copies = [(a.clone(), b.clone()) for a, b in seen]
        for block, (given, got) in zip(net.blocks(), copies):
            before = given.clone()
            assert_close(block(given), got, rtol=1e-5, atol=1e-5)
            assert torch.equal(given, before)
    assert all(isinstance(y, torch.Tensor) for _, y in seen)


@pytest.mark.filterwarnings('ignore:.*computed module by module')
@pytest.mark.parametrize('where', ['block', 'block before', 'stage', 'inside', 'none'])
@pytest.mark.parametrize('static', [False, True], ids=['dynamic', 'static'])
@NETS
def test_nothing_that_a_hook_keeps_is_written_over(make_net, arch, kwargs, static, where):
    net, x, kept = make_net(arch, **kwargs), images(), []

    def keep(*tensors):
        kept.extend((t, t.clone()) for t in tensors if isinstance(t, torch.Tensor))
    modules = dict(block=net.blocks(), stage=net.children(), none=[])
    for module in modules.get(where, []):
        module.register_forward_hook(lambda m, args, y: keep(y, *args))
    for block in net.blocks():
        if where == 'block before':
            block.register_forward_pre_hook(lambda m, args: keep(*args))
        if where == 'inside':
            for module in block.modules():
                module.register_forward_hook(lambda m, args, y: keep(y, *args))
    image = x.clone()
    with net.as_static() if static else nullcontext():
        outputs = run(net, x)
        keep(*outputs)
        run(net, x)
    assert torch.equal(x, image)
    for tensor, copy_ in kept:
        assert torch.equal(tensor, copy_)


@CNNS
def test_a_layer_getter_walks_it(make_net, arch, kwargs):
    net, x = make_net(arch, **kwargs), images()
    names = [name for name, _ in net.named_children()]
    getter = IntermediateLayerGetter(net, {names[-1]: 'last'})
    with torch.no_grad():
        assert_close(getter(x)['last'], net(x)[-1], rtol=1e-4, atol=1e-4)


# Memory formats.

@NETS
def test_outputs_have_the_memory_format_of_the_input(make_net, arch, kwargs):
    if arch is TINY_T2T:
        kwargs = dict(kwargs, out_type='featmap')
    net, x = make_net(arch, **kwargs), images()
    for static in (False, True):
        with net.as_static() if static else nullcontext():
            assert all(y.is_contiguous() for y in run(net, x))
            last = run(net, x.contiguous(memory_format=torch.channels_last))
            if arch is not TINY_T2T:
                assert all(y.is_contiguous(memory_format=torch.channels_last) for y in last)
            assert_close(run(net, x), last, rtol=1e-4, atol=1e-4)


# Threads, processes, copies.

@NETS
def test_threads_may_evaluate_one_net(make_net, arch, kwargs):
    net, x = make_net(arch, **kwargs), images(batch=1)
    expected = {half: run_autocast(net, x, half) for half in (False, True)}
    errors = []

    def serve(index):
        try:
            for turn in range(6):
                half = bool((index + turn) % 2)
                net.eval()
                assert_close(run_autocast(net, x, half), expected[half], rtol=1e-5, atol=1e-5)
        except BaseException as error:
            errors.append(error)
    threads = [threading.Thread(target=serve, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]


def run_autocast(net, x, half):
    with torch.autocast('cpu', torch.bfloat16, enabled=half):
        return run(net, x)


@pytest.mark.parametrize('clone', [
    copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)),
    lambda net: pickle.loads(ForkingPickler.dumps(net))], ids=['deepcopy', 'pickle', 'forking'])
@NETS
def test_nets_can_be_copied_at_any_moment(make_net, arch, kwargs, clone):
    net, x = make_net(arch, **kwargs), images()
    loss = sum(y.square().mean() for y in net.train()(x))
    for moment in ('forward', 'backward', 'evaluated'):
        twin = clone(net)
        assert_close(run(twin.eval(), x), run(clone(net).eval(), x))
        if moment == 'forward':
            loss.backward()
        else:
            run(net.eval(), x)


# Derivatives.

@pytest.mark.filterwarnings('ignore:.*computed module by module')
@NETS
def test_forward_mode_derivatives_are_right(make_net, arch, kwargs):
    net = make_net(arch, torch.float64, **kwargs)
    x = images().double()
    direction = torch.randn_like(x)
    with force_rate(net, 0.6):
        _, forward = torch.func.jvp(lambda x: net(x)[-1], (x,), (direction,))
        with torch.autograd.forward_ad.dual_level(), torch.no_grad():
            dual = net(torch.autograd.forward_ad.make_dual(x, direction))[-1]
            assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, forward)
        x.requires_grad_()
        y = net(x)[-1]
        weights = torch.randn_like(y)
        backward, = torch.autograd.grad((y * weights).sum(), x)
    assert_close((forward * weights).sum(), (backward * direction).sum(), rtol=1e-6, atol=1e-8)
    assert forward.abs().sum() > 0


@NETS
def test_frozen_weights_run_with_gradients_on(make_net, arch, kwargs):
    net, x = make_net(arch, **kwargs), images()
    expected = run(net, x)
    net.requires_grad_(False)
    with force_rate(net, 0.6):
        assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
        x.requires_grad_()
        sum(y.sum() for y in net(x)).backward()
    assert x.grad.abs().sum() > 0


@NETS
def test_empty_batches_give_empty_maps(make_net, arch, kwargs):
    net = make_net(arch, **kwargs)
    full, empty = run(net, images()), run(net, images(batch=0))
    assert [y.shape[1:] for y in empty] == [y.shape[1:] for y in full]
    assert all(len(y) == 0 for y in empty)


@NETS
def test_nan_goes_in_and_comes_out(make_net, arch, kwargs):
    net, x = make_net(arch, **kwargs), images()
    clean = x.clone()
    x[0, :, 20:30, 20:30] = float('nan')
    with torch.no_grad():
        y, other = net(x)[-1], net(clean)[-1]
    assert y[0].isnan().any() and not other.isnan().any()
    assert_close(y[1], other[1], rtol=1e-4, atol=1e-4)


def test_t2t_position_embeddings_survive_copies(make_net):
    assert isinstance(copy.deepcopy(make_net(TINY_T2T)), LAUDT2TViT)


# Class activation maps, FLOP counters, meta tensors, evaluation with gradients.

def activation_map(net, x, head, **execution):
    """Grad-CAM at the last norm, as mmpretrain's `vis_cam` picks it by default."""
    kept = []
    norms = [m for m in net.modules() if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm))]
    layer = norms[-3] if isinstance(net, LAUDT2TViT) else norms[-1]
    handle = layer.register_forward_hook(lambda module, args, y: kept.append(y))
    with net.executing(**execution):
        score = (net(x)[-1].flatten(1) @ head).sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept)
    dims = (2, 3) if gradient.dim() == 4 else (1,)
    return (kept[0] * gradient.mean(dims, keepdim=True)).sum(1 if gradient.dim() == 4 else 2)


@pytest.mark.filterwarnings('ignore:.*(computed module by module|gradients on)')
@NETS
def test_a_class_activation_map_is_the_masked_nets(make_net, arch, kwargs):
    net, x = make_net(arch, **kwargs), images()
    with torch.no_grad():
        head = torch.randn(net(x)[-1].flatten(1).shape[1])
    torch.manual_seed(0)
    skipping = activation_map(net, x, head)
    masked = activation_map(net, x, head, mode='masked')
    assert skipping.abs().max() > 0
    assert_close(skipping, masked, rtol=1e-3, atol=1e-4 * float(masked.abs().max()))


@pytest.mark.filterwarnings('ignore:.*computed module by module')
@NETS
def test_complexity_is_counted(make_net, arch, kwargs):
    net = make_net(arch, **kwargs)
    counted = get_model_complexity_info(net, (3, 64, 64), show_table=False, show_arch=False)
    static = net.op_specs((64, 64)).static_flops
    assert static <= counted['flops'] <= 1.25 * static  # it counts norms and maskers too


@NETS
@pytest.mark.parametrize('rate', [1.0, 0.5])
def test_torchs_counter_sees_what_operations_multiply(make_net, arch, kwargs, rate):
    net, x = make_net(arch, **kwargs), images(batch=1)

    def count(**execution):
        with FlopCounterMode(display=False) as counter:
            run(net, x, rate, **execution)
        return counter.get_total_flops() / 2

    masked, skipping = count(mode='masked'), count(mode='skipping')
    logits = masked - count(static=True)  # maskers have two logits per unit, kernels one
    if rate == 1 or kwargs['paradigm'] is None:
        # What channels that are off would add is computed, and is nothing here.
        shifts = sum(9 * block.shape.width**2 + block.shape.width * block.shape.out_channels
                     for block in (net.blocks() if kwargs.get('mask_before_norm') else ()))
        assert masked - logits <= skipping <= masked + shifts
        return
    assert skipping < masked - logits
    if arch == 50 and kwargs in (dict(paradigm='layer'), dict(paradigm='channel')):
        assert count() == pytest.approx(float(net.record.cost().flops), rel=0.01)


@pytest.mark.filterwarnings('ignore:.*computed module by module')
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@NETS
def test_meta_tensors_pass_under_autocast(make_net, arch, kwargs, dtype):
    net, x = make_net(arch, **kwargs), images()
    shapes = [y.shape for y in run(net, x)]
    net, x = net.to('meta'), x.to('meta')
    for mode in (True, False):
        with torch.no_grad(), torch.autocast('cpu', dtype=dtype):
            assert [y.shape for y in net.train(mode)(x)] == shapes


@NETS
def test_skipping_with_gradients_on_is_warned_of_once(make_net, arch, kwargs):
    net, x = make_net(arch, **kwargs), images()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with torch.no_grad():
            net(x)
        with torch.inference_mode():
            net(x)
        net.train()(x)
        net.eval()
        with net.executing(mode='masked'):
            net(x)
    if kwargs['paradigm'] is None:
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            net(x)
        return
    with pytest.warns(UserWarning, match=f'{type(net).__name__} evaluates with gradients on'):
        net(x)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        net(x)


@pytest.mark.parametrize('masker', ['mlp', 'linear', 'conv_linear'])
@pytest.mark.parametrize('paradigm', ['channel', 'both', 'layer+channel'])
def test_one_group_of_channels_per_block(make_net, masker, paradigm):
    net = make_net(50, paradigm=paradigm, channel_granularity=(8, 16, 32, 64),
                   masker=dict(channel=masker))
    x = images()
    net.train()(x)
    net.eval()
    for rate in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        expected = run(net, x, rate, mode='masked')
        torch.manual_seed(0)
        assert_close(run(net, x, rate), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():  # and as it decides itself
        decided = net(x)
        with net.executing(mode='masked'):
            assert_close(decided, net(x), rtol=1e-4, atol=1e-4)
