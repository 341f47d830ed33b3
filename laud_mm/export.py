"""Export backbones: the masked-dense network as TorchScript or ONNX, and `torch.export` programs.

What is exported computes everything and multiplies by the masks, as training does: the
numbers of the skipping network, the cost of the static one plus its maskers. ONNX that skips
layers and tokens is written by `laud_mm.deploy.onnx`. `export_program` with
`execution='skipping'` keeps the skipping, for programs that load `laud_mm.ops` themselves.
"""
import copy
import io
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from laud_mm.models.backbones import LAUDBackbone
from laud_mm.ops import use_references
from laud_mm.specs.arguments import check_choice, check_positive_int
from laud_mm.utils.files import replacing

FORMATS = {'torchscript': '.pt', 'onnx': '.onnx'}
OPSET = 18

__all__ = ['ExportableBackbone', 'FORMATS', 'example_images', 'export_onnx', 'export_program',
           'export_torchscript', 'largest_difference', 'run_onnx', 'run_torchscript']


class ExportableBackbone(nn.Module):
    """A copy of a backbone, in evaluation, that exporters can follow.

    Args:
        backbone (LAUDBackbone): Left as it is.
        execution (str): 'masked' or 'skipping'.
    """

    def __init__(self, backbone: LAUDBackbone, execution: str = 'masked'):
        super().__init__()
        self.backbone = copy.deepcopy(backbone).eval().requires_grad_(False)
        self.backbone.execution = check_choice('execution', execution, ('masked', 'skipping'))
        self.backbone.record = None

    def forward(self, x: Tensor) -> tuple:
        """(N, 3, H, W) images to the backbone's outputs."""
        # Recording gradients keeps folds out of caches, which must not hold traced tensors.
        with torch.enable_grad():
            outputs = self.backbone(x)
        self.backbone.record = None
        return outputs


def example_images(image_size: Sequence[int], batch: int = 1, in_channels: int = 3) -> Tensor:
    """Random images to trace and check with.

    Args:
        image_size (Sequence[int]): Height and width.
        batch (int): N.
        in_channels (int): Channels of an image.

    Returns:
        Tensor: (N, C, H, W) float32, the same in every call.

    Raises:
        ValueError: If a size is not a positive int.
    """
    if len(image_size) != 2:
        raise ValueError(f'image_size must be height and width, got {tuple(image_size)}')
    sizes = [check_positive_int(name, size) for name, size in
             (('batch', batch), ('in_channels', in_channels), *(('image_size', s)
                                                                for s in image_size))]
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(0))


def export_torchscript(backbone: LAUDBackbone, path: str | Path, images: Tensor) -> Path:
    """Write the masked-dense network as TorchScript, for images of one size.

    Args:
        backbone (LAUDBackbone): Left as it is.
        path (str | Path): File to write, complete or not at all.
        images (Tensor): (N, C, H, W), traced; batch and size are fixed to theirs.

    Returns:
        Path: The file.
    """
    with use_references():
        traced = torch.jit.trace(ExportableBackbone(backbone), images, check_trace=False)
    return _write(path, lambda part: torch.jit.save(traced, str(part)))


def export_onnx(backbone: LAUDBackbone, path: str | Path, images: Tensor) -> Path:
    """Write the masked-dense network as ONNX, for images of one size.

    Inputs are called `images`, outputs `stage_<index>`.

    Args:
        backbone (LAUDBackbone): Left as it is.
        path (str | Path): File to write, complete or not at all; weights inside.
        images (Tensor): (N, C, H, W), traced; batch and size are fixed to theirs.

    Returns:
        Path: The file.

    Raises:
        ImportError: If onnx and onnxscript are missing: `pip install laud-mm[export]`.
    """
    program = export_program(backbone, images)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')  # about the exporter's own code
        converted = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=['images'],
            output_names=[f'stage_{index}' for index in backbone.out_indices], verbose=False)
    assert converted is not None  # only without `dynamo`
    return _write(path, lambda part: converted.save(str(part)))


def export_program(backbone: LAUDBackbone, images: Tensor,
                   execution: str = 'masked') -> torch.export.ExportedProgram:
    """Export with `torch.export`, for images of one size.

    A 'skipping' program calls the operations of `laud_mm.ops`, which must be imported where
    it runs. Not every network has one: see the errors.

    Args:
        backbone (LAUDBackbone): Left as it is.
        images (Tensor): (N, C, H, W), traced; batch and size are fixed to theirs.
        execution (str): 'masked' or 'skipping'.

    Returns:
        torch.export.ExportedProgram: Its `module()` maps images to the backbone's outputs.

    Raises:
        ValueError: If the skipping executor chooses shapes by what the images show, which no
            program of fixed shapes can do.
    """
    module = ExportableBackbone(backbone, execution)
    try:
        with use_references() if execution == 'masked' else nullcontext():
            return torch.export.export(module, (images,), strict=False)
    except (GuardOnDataDependentSymNode, NotImplementedError, RuntimeError) as error:
        if execution == 'masked':
            raise
        raise ValueError(
            f"execution must be 'masked' for {type(backbone).__name__} with paradigm "
            f'{_paradigms(backbone)}, whose skipping chooses shapes by the images, got '
            f"'skipping' ({str(error).splitlines()[0]})") from error


def run_torchscript(path: str | Path, images: Tensor) -> tuple[Tensor, ...]:
    """Run what `export_torchscript` wrote, on the CPU."""
    with torch.no_grad():
        return tuple(torch.jit.load(str(path))(images))


def run_onnx(path: str | Path, images: Tensor) -> tuple[Tensor, ...]:
    """Run what `export_onnx` wrote with onnxruntime, on the CPU."""
    import onnxruntime
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return tuple(torch.from_numpy(y) for y in session.run(None, {'images': images.numpy()}))


def largest_difference(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of two networks' outputs, relative to each output's largest value.

    Raises:
        ValueError: If they differ in number or shapes.
    """
    if [y.shape for y in outputs] != [y.shape for y in expected]:
        raise ValueError(f'outputs must have the shapes {[tuple(y.shape) for y in expected]}, '
                         f'got {[tuple(y.shape) for y in outputs]}')
    return float(torch.stack([(y - e).abs().max() / e.abs().max().clamp(min=1e-12)
                              for y, e in zip(outputs, expected)]).max())  # NaN stays


def _paradigms(backbone):
    found = {str(block.shape.paradigm) for block in backbone.blocks() if block.shape.paradigm}
    return ', '.join(sorted(found)) or 'None'


def _write(path, save):
    with replacing(path) as part:
        save(part)
    return Path(path)
