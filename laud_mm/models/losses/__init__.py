from .activation_loss import ActivationLoss, activation_bounds
from .adavit_loss import AdaViTLoss

__all__ = ['ActivationLoss', 'AdaViTLoss', 'activation_bounds']
