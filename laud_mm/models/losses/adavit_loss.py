"""AdaViT's loss: keeps a transformer's tokens, heads and branches at their targets."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from laud_mm.models.dynamic import ActivationCost
from laud_mm.registry import MODELS
from laud_mm.specs.arguments import check_fraction

from .activation_loss import check_weight, mean_over_ranks

SPREAD_WEIGHT = ENTROPY_WEIGHT = 0.1
MIN_TOKENS = 0.1  # share of tokens below which an image's block is charged


@MODELS.register_module()
class AdaViTLoss:
    """Hold the shares of tokens, heads and branches that are computed (method, section 6).

    weight * sum of, each where the backbone decides it:

    * heads and branches: |mean - target| + 0.1 * mean over units of
      |unit's mean - target| - 0.1 * entropy of the gates, a unit being a head or a
      branch of one block. Heads count where a branch of their block runs.
    * tokens: (mean - target)^2 + sum of max(0, 0.1 - mean) over the blocks of all images.

    Args:
        head_target (float): Share of heads on.
        layer_target (float): Share of branches on.
        token_target (float): Share of tokens on, the class token among them.
        weight (float): Of each of the three.

    Raises:
        ValueError: For an argument out of its range, with the field's name.
    """
    target = None  # it holds rates, not a FLOPs fraction

    def __init__(self, head_target: float = 0.5, layer_target: float = 0.5,
                 token_target: float = 0.5, weight: float = 2.0):
        self.head_target = check_fraction('head_target', head_target)
        self.layer_target = check_fraction('layer_target', layer_target)
        self.token_target = check_fraction('token_target', token_target)
        self.weight = check_weight(weight)

    def __call__(self, cost: ActivationCost, progress: float) -> tuple[Tensor, Tensor]:
        """Compute the loss of one forward pass.

        Args:
            cost (ActivationCost): From `ActivationRecord.cost()` of a transformer in training.
            progress (float): Not used: the targets hold from the start.

        Returns:
            tuple[Tensor, Tensor]: Scalar loss, and the scalar mean FLOPs
            fraction over images and processes (detached).

        Raises:
            ValueError: If the backbone decides on no tokens, heads or branches.
        """
        decisions: list[Any] = list(cost.decisions)
        gated = [d for d in decisions if getattr(d, 'heads', None) is not None
                 or getattr(d, 'branches', None) is not None]
        tokens = [d.all_tokens for d in decisions
                  if getattr(d, 'tokens', None) is not None]
        if not gated and not tokens:
            raise ValueError('AdaViTLoss needs a backbone that decides on tokens, heads or layers '
                             '(LAUDT2TViT with a paradigm)')
        loss = cost.rates.new_zeros(())
        if gated and gated[0].heads is not None:
            loss = loss + self._heads(gated)
        if gated and gated[0].branches is not None:
            branches, logits = (torch.stack([getattr(d, name) for d in gated], 1).float()
                                for name in ('branches', 'branch_logits'))
            loss = loss + _gate_loss(branches, torch.ones_like(branches), logits,
                                     self.layer_target)
        if tokens:
            loss = loss + self._tokens(torch.stack(tokens, 1).float())
        return self.weight * loss, mean_over_ranks(cost.fraction.mean()).detach()

    def _heads(self, decisions):
        heads, logits = (torch.stack([getattr(d, name) for d in decisions], 1).float()
                         for name in ('heads', 'head_logits'))
        counted = torch.ones_like(heads)
        if decisions[0].branches is not None:
            runs = torch.stack([d.branches.detach().bool().any(1) for d in decisions], 1)
            counted = counted * runs[..., None]
        return _gate_loss(heads, counted, logits, self.head_target)

    def _tokens(self, tokens):
        """`tokens` (N, B, T): masks with the class token."""
        mean = mean_over_ranks(tokens.mean())
        too_few = (MIN_TOKENS - tokens.mean(-1)).clamp(min=0).sum()
        return (mean - self.token_target)**2 + mean_over_ranks(too_few)


def _gate_loss(gates, counted, logits, target):
    """The loss of heads or branches; all (N, B, units), `counted` 1 where a gate counts."""
    on, count = mean_over_ranks(torch.stack([(gates * counted).sum(0), counted.sum(0)]))
    mean = on.sum() / count.sum().clamp(min=1e-6)
    spread = (on / count.clamp(min=1e-6) - target).abs().mean()
    # Binary entropy in nats: cross-entropy of the probabilities with themselves.
    entropy = F.binary_cross_entropy_with_logits(logits, torch.sigmoid(logits))
    return ((mean - target).abs() + SPREAD_WEIGHT * spread
            - ENTROPY_WEIGHT * mean_over_ranks(entropy))
