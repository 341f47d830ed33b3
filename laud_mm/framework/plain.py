"""Stand-ins for what the core takes from mmengine and mmcv, for environments with torch alone."""
import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from laud_mm.utils.stack import require_packages

ModuleDict, ModuleList, Sequential = nn.ModuleDict, nn.ModuleList, nn.Sequential


class BaseModule(nn.Module):
    """A module that initialises its weights when it is told to, as mmengine's does.

    Args:
        init_cfg (dict | list[dict], optional): What `init_weights` does, see `initialize`.

    Attributes:
        is_init (bool): Whether `init_weights` ran.
    """

    def __init__(self, init_cfg: dict | list[dict] | None = None):
        super().__init__()
        self.init_cfg = copy.deepcopy(init_cfg)
        self.is_init = False

    def init_weights(self) -> None:
        """Initialise as `init_cfg` says, then the modules inside, whose configs come first."""
        if self.is_init:
            return
        configs = self.init_cfg or []
        for config in [configs] if isinstance(configs, dict) else configs:
            initialize(self, config)
        for module in _initialisable(self):
            if not getattr(module, 'is_init', False):
                module.init_weights()
        self.is_init = True


def _initialisable(module: nn.Module) -> Iterator[Any]:
    """The outermost modules inside a module that have an `init_weights`."""
    for child in module.children():
        if hasattr(child, 'init_weights'):
            yield child
        else:
            yield from _initialisable(child)


# mmengine's names and defaults; arguments have torch's names.
_INITIALISERS: dict[str, Any] = {
    'Constant': nn.init.constant_, 'Normal': nn.init.normal_,
    'TruncNormal': nn.init.trunc_normal_,
    'Kaiming': partial(nn.init.kaiming_normal_, mode='fan_out', nonlinearity='relu')}


def initialize(module: nn.Module, config: dict) -> None:
    """Initialise the layers of one kind inside a module.

    Args:
        module (nn.Module): All modules inside count, and itself.
        config (dict): `type`, a key of mmengine's initialisers ('Constant', 'Normal',
            'TruncNormal' or 'Kaiming'), `layer`, one class name or several, of the modules or
            of their bases, `bias` (default 0), and arguments of the initialiser.

    Raises:
        ValueError: If only mmengine knows the initialiser.
    """
    own = dict(config)
    kind, layers, bias = own.pop('type', None), own.pop('layer', ()), own.pop('bias', 0)
    if kind not in _INITIALISERS or 'override' in own:
        raise ValueError(f'init_cfg must have a type of {", ".join(_INITIALISERS)} or Pretrained, '
                         f'and no override, where mmengine is not installed, got {config!r}')
    layers = {layers} if isinstance(layers, str) else set(layers)
    for inner in module.modules():
        if layers & {cls.__name__ for cls in (type(inner), *type(inner).__bases__)}:
            weight, shift = getattr(inner, 'weight', None), getattr(inner, 'bias', None)
            if weight is not None:
                _INITIALISERS[kind](weight, **own)
            if shift is not None:
                nn.init.constant_(shift, bias)


_CONVS = dict.fromkeys(('Conv', 'Conv2d'), nn.Conv2d)
_NORMS = {**dict.fromkeys(('BN', 'BN2d', 'BatchNorm2d'), nn.BatchNorm2d),
          **dict.fromkeys(('SyncBN', 'SyncBatchNorm'), nn.SyncBatchNorm)}


def _build(field: str, known: dict[str, Any], config: dict, *args: Any, **kwargs: Any) -> Any:
    """Build a layer from a config with a `type`: a class, or a key of `known`."""
    kind, own = config['type'], {k: v for k, v in config.items() if k != 'type'}
    if isinstance(kind, str) and kind not in known:
        require_packages(f'{field}.type={kind!r}', 'mmengine', 'mmcv')
    return known.get(kind, kind)(*args, **kwargs, **own)


def build_conv_layer(cfg: dict | None, *args: Any, **kwargs: Any) -> nn.Module:
    """Build the convolution that `conv_cfg` says; None: a plain one."""
    return _build('conv_cfg', _CONVS, cfg or dict(type='Conv2d'), *args, **kwargs)


def build_norm_layer(cfg: dict, num_features: int) -> tuple[str, nn.Module]:
    """Build the batch norm that `norm_cfg` says: a name for it, and itself."""
    own = dict(cfg)
    requires_grad = own.pop('requires_grad', True)
    norm = _build('norm_cfg', _NORMS, own, num_features)
    norm.requires_grad_(requires_grad)
    return 'bn', norm


class DropPath(nn.Module):
    """Stochastic depth: in training a sample's branch is zero with a probability.

    Args:
        drop_prob (float): The probability.
    """

    def __init__(self, drop_prob: float = 0.1):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.drop_prob):
            return x
        kept = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) >= self.drop_prob
        return x * kept / (1 - self.drop_prob)


@contextmanager
def quiet_initialisation() -> Iterator[None]:
    """Without a log of what `init_weights` sets: there is none here."""
    yield


def is_model_wrapper(model: nn.Module) -> bool:
    """Whether a model holds another one for data-parallel training."""
    return isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))


def all_gather_object(data: Any) -> list:
    """The objects of all processes, by rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return [data]
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, data)
    return gathered


def print_log(msg: str, logger: Any = None, level: int = logging.INFO) -> None:
    """Log a message; as with mmengine, `logger='current'` is the usual one."""
    logging.getLogger('laud_mm').log(level, msg)


def load_checkpoint(filename: str, map_location: Any = None, logger: Any = None) -> Any:
    """Read a checkpoint, weights only.

    Args:
        filename (str): A file, an http or https URL, or 'torchvision://resnet50'.
        map_location (str): Device to read to.
        logger: Taken for the signature of mmengine's.

    Raises:
        ValueError: If only mmengine could open it.
    """
    scheme, separator, rest = str(filename).partition('://')
    if not separator:
        return torch.load(filename, map_location=map_location, weights_only=True)
    read = partial(torch.hub.load_state_dict_from_url, map_location=map_location,
                   weights_only=True)
    if scheme in ('http', 'https'):
        return read(filename)
    if scheme != 'torchvision':
        raise ValueError('a checkpoint must be a file, an http URL or torchvision://… where '
                         f'mmengine is not installed, got {filename!r}')
    require_packages(filename, 'torchvision')
    from torchvision.models import get_model_weights
    name, _, version = rest.partition('.')
    weights = get_model_weights(name)
    # What mmengine opens by a bare name: the first that torchvision published.
    return read(weights[version.upper() or 'IMAGENET1K_V1'].url)
