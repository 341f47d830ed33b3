"""Networks that leave training, and Python: see `deploy`.

`laud_mm.deploy(model)` is `laud_mm.deploy.deploy(model)`.
"""
from .build import deploy
from .modules import DeployedBackbone

__all__ = ['DeployedBackbone', 'deploy']
