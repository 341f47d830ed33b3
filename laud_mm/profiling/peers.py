"""The static net in other runtimes: whom a skipping net has to beat."""
import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from laud_mm.deploy.onnx.runtimes import PACKAGES, RUNTIMES, has_bf16
from laud_mm.export import export_onnx, largest_difference

INSTALL = 'pip install laud-mm[peers]'
# Largest differences to the static net in torch, of each output's largest value.
TOLERANCES = dict(fp32=1e-3, bf16=0.1)
# What precisions of `run_precision` are called here; others have no peer of their own.
PRECISION_OF = dict(fp32='fp32', bf16='bf16', amp_bf16='bf16')


@dataclass(frozen=True)
class Peers:
    """What other runtimes made of a static net.

    Attributes:
        nets (dict[str, RuntimeNet]): By '<runtime>_<precision>'.
        images (Tensor): (N, C, H, W) float32, what they were made for.
        versions (dict[str, str]): By runtime.
        missing (list[str]): What could not be timed, each with its reason.
    """
    nets: dict
    images: torch.Tensor
    versions: dict
    missing: list

    @property
    def programs(self) -> dict[str, Callable]:
        """By net, a function without arguments that runs it on the images."""
        return {name: partial(net.infer, self.images) for name, net in self.nets.items()}


def static_peers(static, x):
    """The static net in every runtime that is here, in each of its precisions.

    bfloat16 is left out where the CPU has no instructions for it.

    Args:
        static (LAUDBackbone): With `paradigm=None`, in evaluation.
        x (Tensor): (N, C, H, W) images; the runtimes have them as float32 in their own layout,
            (N, C, H, W) one after another.

    Returns:
        Peers: Each was compared with the net in torch first.

    Raises:
        RuntimeError: If a runtime gives other numbers.
    """
    nets, missing, found = {}, [], {}
    for name in (*PACKAGES.values(), 'onnx', 'onnxscript'):
        try:
            found[name] = importlib.import_module(name)
        except ImportError:
            missing.append(f'{name}: not installed ({INSTALL})')
    static, images = static.float(), x.detach().float().contiguous()
    versions = {name: found[name].__version__ for name in PACKAGES.values() if name in found}
    if not {'onnx', 'onnxscript'} <= set(found):
        return Peers({}, images, versions, missing)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        expected = static(images)
    with tempfile.TemporaryDirectory() as folder, \
            torch.autocast(x.device.type, enabled=False):
        path = export_onnx(static, Path(folder) / 'static.onnx', images)
        for kind, name in PACKAGES.items():
            for precision in RUNTIMES[kind].precisions if name in found else ():
                if precision == 'bf16' and not has_bf16():
                    missing.append(f'{name}_bf16: this CPU has no bfloat16 instructions')
                    continue
                net = RUNTIMES[kind](path, precision=precision)
                difference = largest_difference(net(images), expected)
                if not difference <= TOLERANCES[precision]:
                    raise RuntimeError(
                        f'the static net in {name} {precision} must give the numbers that it '
                        f'gives in torch, got a difference of {difference:.1e}')
                nets[f'{name}_{precision}'] = net
    return Peers(nets, images, versions, missing)
