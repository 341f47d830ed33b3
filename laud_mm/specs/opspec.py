"""OpSpec: what one operation of a network costs, as a function of activation rates.

Nothing here imports torch: rates may be floats, NumPy arrays or tensors, and
FLOPs come out as the same kind.
"""
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Size = tuple[int, ...]  # (height, width)


@dataclass(frozen=True)
class Rates:
    """Activation rates of one block, each in [0, 1].

    Every field is a scalar or has one value per image, shape (N,).

    Attributes:
        layer: 1 where the block runs.
        patch: Share of the block's output positions that lie in active patches.
        halo: Share of conv1's output positions that conv2 reads for those patches.
        channel: Share of active channels of the bottleneck width.
        channel_pair: Share of conv2's (input, output) channel pairs with both on.
        attn: 1 where a transformer block's attention branch runs.
        mlp: 1 where its MLP branch runs.
        head: Share of active attention heads.
        token: Share of active tokens, the class token among them.
    """
    layer: Any = 1.0
    patch: Any = 1.0
    halo: Any = 1.0
    channel: Any = 1.0
    channel_pair: Any = 1.0
    attn: Any = 1.0
    mlp: Any = 1.0
    head: Any = 1.0
    token: Any = 1.0

    @property
    def unit(self) -> Any:
        """Share of the block that is computed: of samples, output positions, channels.

        Of a transformer block: of tokens, heads and its two branches.
        """
        convolutional = self.layer * self.patch * self.channel
        return convolutional * self.token * self.head * ((self.attn + self.mlp) / 2)


@dataclass(frozen=True)
class OpSpec:
    """One operation on one image.

    Attributes:
        name (str): Module path inside the backbone, such as 'layer1.0.conv2'.
        kind (str): 'conv', 'linear' or 'matmul' (of two activations), which
            multiply; or 'pool', 'add', 'scale', 'norm', 'activation',
            'softmax', which only move data.
        in_channels (int): Channels read.
        out_channels (int): Channels written.
        in_size (tuple[int, int]): Height and width read, in positions.
        out_size (tuple[int, int]): Height and width written, in positions.
        kernel_size (int): Side of the window.
        stride (int): Step of the window.
        dilation (int): Spacing of the window's taps.
        groups (int): Channel groups of a grouped convolution; heads of a matmul.
        scaled_by (tuple[str, ...]): Fields of `Rates` that scale its work; one
            that scales it twice stands twice.
        dynamic (bool): True for work that only the dynamic net does (maskers).
    """
    name: str
    kind: str
    in_channels: int
    out_channels: int
    in_size: Size
    out_size: Size
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    scaled_by: tuple[str, ...] = ()
    dynamic: bool = False

    @property
    def dense_flops(self) -> int:
        """Multiply-adds with everything on; operations that only move data count as none."""
        if self.kind not in ('conv', 'linear', 'matmul'):
            return 0
        return (self.out_size[0] * self.out_size[1] * self.out_channels
                * (self.in_channels // self.groups) * self.kernel_size**2)

    def flops(self, rates: Any) -> Any:
        """Multiply-adds at the given `Rates`."""
        return self.dense_flops * math.prod(getattr(rates, r) for r in self.scaled_by)


def static_flops(ops: Iterable[OpSpec]) -> int:
    """Multiply-adds of the static counterpart: everything on, no masker."""
    return sum(op.dense_flops for op in ops if not op.dynamic)


def dynamic_flops(ops: Iterable[OpSpec], rates: Rates | None) -> Any:
    """Multiply-adds at the given `Rates`, maskers included (method: F_dyn)."""
    return sum(op.flops(rates) for op in ops)
