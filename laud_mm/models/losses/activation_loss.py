"""The activation loss: keeps the backbone's FLOPs at a target (method, section 3)."""
import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from laud_mm.models.dynamic import ActivationCost
from laud_mm.registry import MODELS
from laud_mm.specs.arguments import check_choice, check_fraction

from .latency_budget import LatencyBudget

# Share of the training after which blocks may take any rate.
RELEASE = 0.33


def activation_bounds(target: float, progress: float) -> tuple[float, float]:
    """Bounds of a block's FLOPs fraction: at the target first, then released.

    Args:
        target (float): t, the FLOPs fraction wanted.
        progress (float): Share of the training done, e / E, in [0, 1].

    Returns:
        tuple[float, float]: Lower bound l and upper bound u.
    """
    p = math.cos(math.pi / 2 * min(max(progress / RELEASE, 0.0), 1.0))**2
    return p * target, 1 - p * (1 - target)


def mean_over_ranks(value):
    """Average over processes; the gradient is the local one.

    DDP averages gradients over the processes. A loss of the global mean m then
    needs dL/dm * d(local)/dw from each of them, which is what the local term gives.

    Args:
        value (Tensor): Any shape, the same on every process.

    Returns:
        Tensor: The global mean in value, the local tensor in gradient.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    mean = value.detach().clone()
    dist.all_reduce(mean)
    return value + (mean / dist.get_world_size() - value.detach())


def check_weight(weight, field='weight'):
    """Return `weight`, or raise ValueError if it is not a number >= 0."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight < 0:
        raise ValueError(f'{field} must be a number >= 0, got {weight!r}')
    return weight


def information(logits: Tensor) -> Tensor:
    """How much the images tell of a unit's decision: their mutual information in bits.

    It is the entropy of the mean probability of "on" less the mean of the entropies: 0 where all
    images are alike to a unit or all decisions are drawn by lot, 1 where half of the images
    surely have it on and the others surely off.

    Args:
        logits (Tensor): (N, units), see `Decision.logits`.

    Returns:
        Tensor: (units,).
    """
    p = torch.sigmoid(logits)
    each = F.binary_cross_entropy_with_logits(logits, p, reduction='none').mean(0)
    # A unit on for all images has the gradient of an entropy at the border: none, not infinite.
    mean = mean_over_ranks(p.mean(0)).clamp(1e-6, 1 - 1e-6)
    return (F.binary_cross_entropy(mean, mean, reduction='none')
            - mean_over_ranks(each)) / math.log(2)


@MODELS.register_module()
class ActivationLoss:
    """alpha * (mean_b bound(r_b) + (F_dyn / F_static - t)^2) + delta * mean_b (1 - I_b).

    With `metric='latency'`, F is predicted time on a device in place of FLOPs, see
    `LatencyBudget`; bounds are of FLOPs always.

    Rates count per image, then average over images and processes. I_b is the mean `information`
    of the block's units; patches count as one unit. delta is 0 in the papers.

    Args:
        target (float): t, fraction of the backbone's FLOPs or predicted time, in (0, 1].
        weight (float): alpha.
        bounds (bool): Hold every block at t first and release it over the
            first third of the training; off for networks that start from
            trained maskers.
        diversity (float): delta. Above 0, decisions are driven to depend on the image: on small
            data, nets are otherwise pruned rather than dynamic.
        metric (str): 'flops' or 'latency': what the target is a fraction of.
        device (str, optional): For 'latency': where, see `LatencyBudget`.
        batch (int, optional): Images per batch there; default: 1.
    """

    def __init__(self, target: float, weight: float = 10.0, bounds: bool = True,
                 diversity: float = 0.0, metric: str = 'flops', device: str | None = None,
                 batch: int | None = None):
        self.target = check_fraction('target', target)
        if not target:
            raise ValueError('target must be above 0, got 0')
        self.weight, self.bounds = check_weight(weight), bounds
        self.diversity = check_weight(diversity, 'diversity')
        self.budget = None
        if check_choice('metric', metric, ('flops', 'latency')) == 'latency':
            if device is None:
                raise ValueError('device must be given for metric latency, got None')
            self.budget = LatencyBudget(device, 1 if batch is None else batch)
        elif device is not None or batch is not None:
            raise ValueError(f'device and batch must be None for metric flops, got {device!r} and '
                             f'{batch!r}')

    def __call__(self, cost: ActivationCost, progress: float) -> tuple[Tensor, Tensor]:
        """Compute the loss of one forward pass.

        Args:
            cost (ActivationCost): From `ActivationRecord.cost()`.
            progress (float): Share of the training done, in [0, 1].

        Returns:
            tuple[Tensor, Tensor]: Scalar loss, and the scalar mean fraction of FLOPs, or of
            predicted time, over images and processes (detached).

        Raises:
            ValueError: If no rates reach the target's predicted time.
        """
        dynamic = cost.rates.new_tensor(cost.dynamic, dtype=torch.bool)
        local = torch.cat([cost.fraction.mean()[None], cost.block_fractions[dynamic].mean(1)])
        fraction, blocks = mean_over_ranks(local).split([1, int(dynamic.sum())])
        reached = fraction[0]
        if self.budget is not None:
            reached = self.budget.fraction(cost, mean_over_ranks)
            if self.target < self.budget.least(cost):
                raise ValueError(
                    f'target must be at least {self.budget.least(cost):.3f} of the time predicted '
                    f'for {self.budget.device}, the share of what is never skipped, got '
                    f'{self.target}')
        loss = (reached - self.target)**2
        if self.bounds and len(blocks):
            low, high = activation_bounds(self.target, progress)
            loss = loss + ((blocks - high).clamp(min=0)**2 + (low - blocks).clamp(min=0)**2).mean()
        loss = self.weight * loss
        if self.diversity:
            loss = loss + self.diversity * (1 - self._information(cost))
        return loss, reached.detach()

    def _information(self, cost):
        """Mean over the blocks that decide."""
        blocks = [torch.cat([information(logits.flatten()[:, None] if name == 'patches'
                                         else logits.float()) for name, logits in own.items()])
                  for own in (getattr(d, 'logits', dict)() for d in cost.decisions) if own]
        if not blocks:
            raise ValueError(f'diversity must be 0 for a backbone whose maskers have no logits of '
                             f'layers, patches or channels, got {self.diversity}')
        return torch.stack([own.mean() for own in blocks]).mean()
