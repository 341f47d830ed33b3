from .activation_loss import ActivationLoss, activation_bounds
from .adavit_loss import AdaViTLoss
from .distillation_loss import DistillationLoss

__all__ = ['ActivationLoss', 'AdaViTLoss', 'DistillationLoss', 'activation_bounds']
