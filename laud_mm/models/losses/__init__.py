from .activation_loss import ActivationLoss, activation_bounds
from .adavit_loss import AdaViTLoss
from .distillation_loss import DistillationLoss
from .latency_budget import LatencyBudget

__all__ = ['ActivationLoss', 'AdaViTLoss', 'DistillationLoss', 'LatencyBudget',
           'activation_bounds']
