"""Operations as torch sees them: schemas, fake results, compiling and exporting."""
import pytest
import torch
from torch import nn

from laud_mm import ops

from .samples import by_place, channels_last, sample_arguments

compiled = pytest.mark.skipif(not ops.has_kernel('cpu'), reason='the operations are not compiled')


def test_every_operation_has_a_sample():
    assert set(sample_arguments()) == set(ops.OPERATIONS)


@compiled
@pytest.mark.parametrize('name', ops.OPERATIONS)
def test_schema_and_fake_results_tell_the_truth(name):
    args, kwargs = by_place(name, sample_arguments()[name])
    torch.library.opcheck(getattr(torch.ops.laud_mm, name).default, args, kwargs)


@compiled
@pytest.mark.parametrize('groups, outputs, inputs, kernel', [
    (1, 1, 3, 1), (1, 70, 5, 3), (5, 10, 15, 3), (3, 48, 48, 3), (8, 8, 8, 3), (2, 64, 6, 1)])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16], ids=str)
def test_packed_sizes_are_known_beforehand(dtype, groups, outputs, inputs, kernel):
    from torch._subclasses.fake_tensor import FakeTensorMode
    weight = torch.randn(outputs, inputs // groups, kernel, kernel).to(dtype)
    bias = torch.zeros(outputs, dtype=dtype)
    packs = [lambda w, b: ops.pack_conv(w, b, groups)]
    packs += [ops.pack_winograd] * (kernel == 3 and groups == 1)
    mode = FakeTensorMode()
    for pack in packs:
        real, fake = pack(weight, bias), None
        with mode:
            fake = pack(mode.from_tensor(weight), mode.from_tensor(bias))
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)


class SpatialBranch(nn.Module):
    """Decide, list, convolve and add: the operations of a block, one after another."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(12, 12, k) for k in (1, 3, 1))
        self.masker = nn.Conv2d(12, 1, 1)

    def forward(self, x):
        mask = ops.patch_mask(x, self.masker.weight.flatten(), self.masker.bias, 2)
        index, count = ops.active_patches(mask)
        positions = ops.halo_positions(index, count, x.shape[0], *x.shape[-2:], 2)
        y = ops.conv1x1_positions(x, *positions, self.conv1.weight, self.conv1.bias)
        rows = ops.conv3x3_patches(y, index, count, self.conv2.weight, self.conv2.bias, 2)
        return ops.conv1x1_add_patches_(x.clone(), x, rows, index, count, self.conv3.weight,
                                        self.conv3.bias, 2)


@pytest.fixture
def branch():
    return SpatialBranch().eval().requires_grad_(False)


def test_compiling_breaks_at_no_operation(branch):
    x = channels_last(2, 12, 6, 7)
    expected = branch(x)
    fast = torch.compile(branch, fullgraph=True, backend='aot_eager', dynamic=False)
    assert torch.equal(fast(x), expected)
    assert not torch.equal(expected, x)


def test_a_module_of_operations_is_exported(branch):
    x = channels_last(2, 12, 6, 7)
    program = torch.export.export(branch, (x,))
    assert torch.equal(program.module()(x), branch(x))
    called = {str(node.target).split('.')[1] for node in program.graph.nodes
              if str(node.target).startswith('laud_mm.')}
    assert {'patch_mask', 'compact', 'halo_positions', 'conv1x1_positions', 'conv3x3_patches',
            'conv1x1_add_patches_'} <= called
