"""Networks that leave training, and Python: `laud_mm.deploy(model)`.

The package itself can be called: `laud_mm.deploy(model)` is `laud_mm.deploy.deploy(model)`.
What makes deployed networks is imported when it is asked for; what loads them needs torch and
`laud_mm.ops` only.
"""
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .artefact import Artefact, load, write_artefact
from .profile import UnitProfile, load_profile
from .scales import Scales, load_scales

if TYPE_CHECKING:
    from laud_mm.latency.cuda_graphs import GraphedBackbone

    from .build import deploy
    from .calibrate import measure_scales
    from .compiled import CompiledBackbone
    from .modules import DeployedBackbone

__all__ = ['Artefact', 'CompiledBackbone', 'DeployedBackbone', 'GraphedBackbone', 'Scales',
           'UnitProfile', 'deploy', 'load', 'load_profile', 'load_scales', 'measure_scales',
           'write_artefact']


def __getattr__(name: str) -> Any:
    if name == 'deploy':
        from .build import deploy
        return deploy
    if name == 'measure_scales':
        from .calibrate import measure_scales
        return measure_scales
    if name == 'CompiledBackbone':
        from .compiled import CompiledBackbone
        return CompiledBackbone
    if name == 'GraphedBackbone':
        from laud_mm.latency.cuda_graphs import GraphedBackbone
        return GraphedBackbone
    if name == 'DeployedBackbone':
        from .modules import DeployedBackbone
        return DeployedBackbone
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.deploy(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
