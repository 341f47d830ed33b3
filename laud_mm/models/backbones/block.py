"""DynamicBlock: decide, then compute."""
from mmengine.model import BaseModule
from torch.utils import checkpoint


class DynamicBlock(BaseModule):
    """A block that computes what its masker decides.

    A subclass sets `masker` (None in a static block) and implements `_forward`.

    Args:
        shape: Geometry and paradigm.
        with_cp (bool): Recompute activations in the backward pass.

    Attributes:
        owns_input (bool): Whether nobody else reads the block's input, so that
            the output may overwrite it.
    """

    def __init__(self, shape, with_cp=False, init_cfg=None):
        super().__init__(init_cfg)
        self.shape, self.with_cp = shape, with_cp
        self.owns_input = False

    def forward(self, x, masked, as_static=False, override=None, plan=None):
        """Decide, then compute.

        Args:
            x (Tensor): The block's input: (N, C, H, W), or (N, T, C) tokens.
            masked (bool): Use the masked executor, else the skipping one.
            as_static (bool): Ignore the masker and compute everything.
            override (Callable, optional): Changes the decision.
            plan (ExecutionPlan, optional): Says where the dense executor is faster than the
                skipping one.

        Returns:
            tuple[Tensor, Decision | TransformerDecision]: The output and what was decided.
        """
        if self.with_cp and self.training and x.requires_grad:
            return checkpoint.checkpoint(self._forward, x, masked, as_static, override, plan,
                                         use_reentrant=False)
        return self._forward(x, masked, as_static, override, plan)

    def _forward(self, x, masked, as_static, override, plan):
        raise NotImplementedError
