"""The distillation loss: the student's logits follow the teacher's (method, section 3)."""
import torch.nn.functional as F
from torch import Tensor, nn


class DistillationLoss(nn.Module):
    """beta * T^2 * KL(softmax(teacher / T) || softmax(student / T)).

    Args:
        weight (float): beta.
        temperature (float): T.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, weight: float = 0.5, temperature: float = 4.0):
        super().__init__()
        for field, value, allowed in (('weight', weight, '>= 0'),
                                      ('temperature', temperature, '> 0')):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or value < 0 or (allowed == '> 0' and value == 0):
                raise ValueError(f'{field} must be a number {allowed}, got {value!r}')
        self.weight, self.temperature = weight, temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss, averaged over images.

        Args:
            student (Tensor): (N, classes) logits.
            teacher (Tensor): (N, classes) logits; no gradient flows into them.

        Returns:
            Tensor: Scalar, float32 at least.
        """
        t = self.temperature
        student, teacher = (F.log_softmax((logits if logits.dtype.itemsize > 2
                                           else logits.float()) / t, dim=1)
                            for logits in (student, teacher.detach()))
        divergence = F.kl_div(student, teacher, reduction='batchmean', log_target=True)
        return self.weight * t**2 * divergence
