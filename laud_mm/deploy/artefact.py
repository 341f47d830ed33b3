"""Artefacts: deployed backbones as files that need no mm* package.

A folder holds a net and `card.json`. One of torch needs our operations where it is read; one of
ONNX or OpenVINO needs their runtimes.
"""
from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from laud_mm import ops
from laud_mm.specs.arguments import check_choice
from laud_mm.utils.files import replacing, write_json
from laud_mm.version import __version__

from .onnx.files import SKIP_ONE, write_onnx
from .onnx.runtimes import RUNTIMES

FORMAT, VERSION = 'laud_mm artefact', 1
TORCH_KINDS = ('aoti', 'compile')
NETS = dict(aoti='net.pt2', compile='net.pt2', onnx='net.onnx', openvino='net.xml')
KINDS, CARD = tuple(NETS), 'card.json'

__all__ = ['Artefact', 'KINDS', 'export_deployed', 'load', 'write_artefact']


def export_deployed(deployed: Any, image_size: Sequence[int] = (224, 224)
                    ) -> torch.export.ExportedProgram:
    """Export a deployed backbone for any batch, height and width.

    Args:
        deployed (DeployedBackbone): Of `deploy`, on its own.
        image_size (Sequence[int]): Of the example that is followed.

    Returns:
        torch.export.ExportedProgram: Of contiguous images (N, C, H, W) of at least
        `smallest_side` rows and columns.
    """
    side = deployed.smallest_side
    example = torch.zeros(2, deployed.in_channels, *(max(n, 2 * side) for n in image_size),
                          device=deployed.device)
    sizes = {0: Dim('batch', min=1), 2: Dim('height', min=side), 3: Dim('width', min=side)}
    with torch.no_grad():
        return torch.export.export(deployed, (example,), dynamic_shapes=(sizes,), strict=False)


def write_artefact(deployed: Any, folder: str | Path, to: str = 'aoti',
                   image_size: Sequence[int] = (224, 224),
                   more: Mapping[str, Any] | None = None, one_image: bool = False) -> dict:
    """Write a deployed backbone and its card.

    Args:
        deployed (DeployedBackbone): Of `deploy`, on its own.
        folder (str | Path): To write into.
        to (str): 'aoti': machine code, for Python and C++; 'compile': a graph, which is
            compiled where it is loaded; 'onnx' and 'openvino': for their runtimes.
        image_size (Sequence[int]): Of the example, and of the card's figures.
        more (dict, optional): More entries of the card.
        one_image (bool): ONNX and OpenVINO only: for a batch of one image, which is
            faster.

    Returns:
        dict: The card.

    Raises:
        ValueError: If `to` is none of these, or has no such form.
        RuntimeError: If the compiled operations are missing: references cannot be exported; or
            a package of the extra `deploy`.
    """
    check_choice('to', to, KINDS)
    folder, net = Path(folder), Path(folder, NETS[to])
    about = describe(deployed, image_size)
    if to in TORCH_KINDS:
        if one_image:
            raise ValueError(f'one_image must be False for {to!r}, got True')
        own = _write_torch(deployed, net, to, image_size)
    else:
        own = write_onnx(deployed, net, to, SKIP_ONE[to] if one_image else 'gather')
        forms, (images,) = own.pop('forms'), about['inputs']
        about['blocks'] = [dict(b, computes=forms[b['name']]) for b in about['blocks']]
        about['inputs'] = [dict(images, smallest_side=1, **dict(batch=1) if one_image else {})]
        own = dict(own, device='cpu')
    card = dict(format=FORMAT, version=VERSION, kind=to, **own, laud_mm=__version__,
                net_bytes=sum(f.stat().st_size for f in (net, net.with_suffix('.bin'))
                              if f.is_file()), **about, **(more or {}))
    write_json(card, folder / CARD)
    return card


def _write_torch(deployed, net, to, image_size):
    if not ops.has_kernel(deployed.device):
        raise RuntimeError('an artefact calls the compiled operations, which are missing for '
                           f'{deployed.device}: build them, or run without LAUD_MM_OPS=reference')
    program = export_deployed(deployed, image_size)
    with replacing(net) as part, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about torch's own code
        if to == 'aoti':
            torch._inductor.aoti_compile_and_package(program, package_path=str(part))
        else:
            torch.export.save(program, part)
    return _machine(deployed.device)


def describe(deployed: Any, image_size: Sequence[int]) -> dict:
    """What a card says of a deployed backbone: inputs, outputs, decisions, blocks."""
    blocks, decisions = [], []
    size: Any = deployed.stem.out_size(tuple(image_size))
    for block in deployed.blocks():
        shape, flops = block.shape, [op for op in block.shape.op_specs(size)]
        own = [f'{shape.name}.{mask}' for mask in shape.masks]
        decisions += own
        counted = [op for op in flops if block.computes != 'none' or 'downsample' in op.name]
        blocks.append(dict(
            name=shape.name, computes=block.computes, decisions=own,
            decided_for_good=block.fixed, channel_groups=block.kept,
            flops_g=sum(op.dense_flops for op in counted) / 1e9))
        size = shape.out_size(size)
    return dict(
        inputs=[dict(name='images', dtype='float32', layout='contiguous (N, C, H, W)',
                     channels=deployed.in_channels, smallest_side=deployed.smallest_side)],
        computes_in=deployed.computes_in,
        outputs=[f'stage_{index}' for index in deployed.out_indices],
        decisions=decisions if deployed.with_decisions else [],
        image_size=list(image_size), blocks=blocks)


def _machine(device):
    """What an artefact's weights and code depend on."""
    return dict(torch=torch.__version__.split('+')[0], device=torch.device(device).type,
                cpu_isa=torch.ops.laud_mm_build.cpu_isa())


class Artefact(nn.Module):
    """An artefact that was read: images to maps.

    Args:
        card (dict): Its card.
        run (Callable): Runs checked images.
        image_size (Sequence[int], optional): Height and width of all images.
    """

    def __init__(self, card: Mapping[str, Any], run: Any,
                 image_size: Sequence[int] | None = None):
        super().__init__()
        self.card, self._run, self.image_size = card, run, image_size

    def forward(self, x: Tensor) -> Any:
        """As `DeployedBackbone` does, in contiguous maps.

        Raises:
            ValueError: If the images are not such as the card says.
        """
        return self._checked(self._run, x)

    def infer(self, x: Tensor) -> None:
        """Run without copying what the net gives: what is timed."""
        self._checked(getattr(self._run, 'infer', self._run), x)

    @torch.no_grad()
    def _checked(self, run: Any, x: Tensor) -> Any:
        (wanted,) = self.card['inputs']
        channels, side = wanted['channels'], wanted['smallest_side']
        batch = wanted.get('batch')
        if (x.dim() != 4 or x.shape[1] != channels or min(x.shape[2:]) < side or not len(x)
                or batch not in (None, len(x))):
            raise ValueError(f'images must be (N, {channels}, H, W), N {batch or "at least 1"}, '
                             f'H and W at least {side}, got shape {tuple(x.shape)}')
        if x.dtype != torch.float32 or x.device.type != self.card['device']:
            raise ValueError(f'images must be float32 on {self.card["device"]}, got {x.dtype} on '
                             f'{x.device}')
        if self.image_size is not None and tuple(x.shape[2:]) != tuple(self.image_size):
            raise ValueError(f'images must be {" x ".join(map(str, self.image_size))}, for which '
                             f'the net was loaded, got shape {tuple(x.shape)}')
        return run(x.contiguous())


def load(folder: str | Path, image_size: Sequence[int] | None = None,
         precision: str | None = None) -> Artefact:
    """Read an artefact. Needs torch, `laud_mm.ops` or the runtime, and no mm* package.

    Args:
        folder (str | Path): Of `write_artefact`.
        image_size (Sequence[int], optional): Height and width of all images, for which
            onnxruntime and OpenVINO then plan; default: any.
        precision (str, optional): What OpenVINO may compute in, 'fp32' or 'bf16'.

    Returns:
        Artefact: A module.

    Raises:
        ValueError: If there is no artefact, or it was made for another torch, device or CPU, or
            has no such precision.
        RuntimeError: If the compiled operations, or the runtime, are missing.
    """
    card = read_card(folder)
    net = str(Path(folder, NETS[card['kind']]))
    if card['kind'] in RUNTIMES:
        return Artefact(card, RUNTIMES[card['kind']](
            net, image_size=image_size and tuple(image_size), precision=precision or 'fp32'),
            image_size)
    if precision is not None:
        raise ValueError(f'precision must be left out for {card["kind"]!r}, which computes in '
                         f'{card["computes_in"]}, got {precision!r}')
    if not ops.has_kernel(card['device']):
        raise RuntimeError(f'{folder} needs the compiled operations of laud_mm for '
                           f'{card["device"]}, which are missing: build them')
    here = _machine(card['device'])
    for key, value in here.items():
        if card.get(key) != value:
            raise ValueError(f'{folder} must be of {key} {value}, as this machine is, got '
                             f'{card.get(key)!r}: deploy again here')
    if card['kind'] == 'aoti':
        return Artefact(card, torch._inductor.aoti_load_package(net), image_size)
    from .compiled import CompiledBackbone  # torch's compiler is large
    program = torch.export.load(net).module()
    # Guards on sizes, which were checked; a compiler cannot follow them for any batch.
    if hasattr(program, '_guards_fn'):
        program._guards_fn = nn.Identity()
    return Artefact(card, CompiledBackbone(program), image_size)


def read_card(folder: str | Path) -> dict:
    """The card of an artefact.

    Raises:
        ValueError: If there is none, or one of another format.
    """
    path = Path(folder, CARD)
    try:
        card = json.loads(path.read_text())
        kind = (card['format'], card['version'], card['kind'] in KINDS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'artefact must be a folder of write_artefact, got {str(folder)!r}: '
                         f'{error!r}') from error
    net = NETS.get(card['kind'], 'a net')
    if kind != (FORMAT, VERSION, True) or not Path(folder, net).is_file():
        raise ValueError(f'{path} must have format {FORMAT!r} version {VERSION}, a kind among '
                         f'{", ".join(KINDS)}, and {net} beside it, got {kind[:2]}, '
                         f'{card["kind"]!r}')
    return card
