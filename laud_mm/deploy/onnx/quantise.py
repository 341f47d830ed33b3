"""Static int8 quantisation of exported nets, by the quantisers of onnxruntime and OpenVINO."""
from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

from torch import Tensor

from laud_mm.utils.files import replacing

from .backbone import INPUT
from .blocks import MASKER
from .files import save_openvino
from .runtimes import need


def quantise_onnx(source: str | Path, path: str | Path, batches: Iterable[Tensor]) -> Path:
    """Quantise the convolutions of a file of `write_onnx`, but those of maskers.

    The result, of quantise and dequantise nodes, runs in onnxruntime and in OpenVINO.

    Args:
        source (str | Path): The file, whose blocks are skipped by 'gather' or 'slice'.
        path (str | Path): The file to write, complete or not at all.
        batches (Iterable[Tensor]): (N, C, H, W) float32 images to calibrate with: a hundred
            like those that it will see. Each block should be on for some.

    Returns:
        Path: The file.

    Raises:
        ValueError: If blocks are branches of an `If`, into which the quantiser does not look;
            or there are no images.
        RuntimeError: If onnx or onnxruntime are missing.
    """
    need('onnx', 'onnxruntime')
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    batches = list(batches)
    nodes = onnx.load(str(source), load_external_data=False).graph.node
    _check(batches, (node.op_type for node in nodes), source)
    deciding = [node.name for node in nodes if f'.{MASKER}.' in node.name]

    class Reader(CalibrationDataReader):
        """Hands on one batch after another."""

        def __init__(self):
            self.rest = iter(batches)

        def get_next(self):
            x = next(self.rest, None)
            return x if x is None else {INPUT: x.contiguous().numpy()}

    # It recommends to fuse norms, which are folded.
    with _errors_only(logging.root), replacing(path) as part:
        quantize_static(
            str(source), str(part), Reader(), op_types_to_quantize=['Conv'],
            per_channel=True, nodes_to_exclude=deciding,
            quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8)
    return Path(path)


def quantise_openvino(source: str | Path, path: str | Path, batches: Iterable[Tensor]) -> Path:
    """Quantise a file of `write_onnx` for OpenVINO by NNCF, all but the maskers.

    Args:
        source (str | Path): The file, of ONNX or OpenVINO, whose blocks are skipped by 'gather'
            or 'slice'.
        path (str | Path): The `.xml` to write, with its `.bin`, complete or not at all.
        batches (Iterable[Tensor]): See `quantise_onnx`.

    Returns:
        Path: The file.

    Raises:
        ValueError: See `quantise_onnx`; or if `path` does not end in .xml, or a block is on for
            no image.
        RuntimeError: If openvino or nncf are missing.
    """
    if Path(path).suffix != '.xml':
        raise ValueError(f'path must end in .xml, got {path}')
    openvino, nncf = need('openvino', 'nncf')
    batches = list(batches)
    model = openvino.Core().read_model(str(source))
    _check(batches, (op.get_type_name() for op in model.get_ops()), source)
    deciding = nncf.IgnoredScope(patterns=[rf'.*{re.escape(f".{MASKER}.")}.*'], validate=False)
    try:
        # It shows its progress on the output.
        with _errors_only(logging.getLogger('nncf')), redirect_stdout(StringIO()):
            model = nncf.quantize(
                model, nncf.Dataset(batches, lambda x: x.contiguous().numpy()),
                # `MIXED`: what is rectified has no zero point.
                preset=nncf.QuantizationPreset.MIXED, subset_size=len(batches),
                ignored_scope=deciding,
                # In place the range of a map of no samples would be that of the type.
                advanced_parameters=nncf.AdvancedQuantizationParameters(inplace_statistics=False))
    except nncf.InternalError as error:
        raise ValueError('batches must hold images for which each block is on, got none for some: '
                         f'{error}') from error
    save_openvino(model, Path(path))
    return Path(path)


def _check(batches, operations, source):
    if not batches:
        raise ValueError('batches must hold images to calibrate with, got none')
    if 'If' in operations:
        raise ValueError("skip must be 'gather' or 'slice' in a file that is quantised, got 'if' "
                         f'in {source}')


@contextmanager
def _errors_only(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
