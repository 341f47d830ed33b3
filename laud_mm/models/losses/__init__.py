from .activation_loss import ActivationLoss, activation_bounds

__all__ = ['ActivationLoss', 'activation_bounds']
