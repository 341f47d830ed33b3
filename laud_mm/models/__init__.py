from laud_mm.weights import allow_runner_types

from . import backbones, losses

__all__ = ['backbones', 'losses']

# So that --resume and mmdet's own loading read the checkpoints of these models.
allow_runner_types()
