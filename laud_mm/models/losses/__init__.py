from .activation_loss import ActivationLoss, activation_bounds
from .distillation_loss import DistillationLoss

__all__ = ['ActivationLoss', 'DistillationLoss', 'activation_bounds']
