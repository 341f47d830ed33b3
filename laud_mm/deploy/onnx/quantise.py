"""Static int8 quantisation of ONNX files, by onnxruntime's quantiser."""
from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from laud_mm.utils.files import replacing

from .backbone import INPUT
from .blocks import MASKER
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
    if not batches:
        raise ValueError('batches must hold images to calibrate with, got none')
    nodes = onnx.load(str(source), load_external_data=False).graph.node
    if any(node.op_type == 'If' for node in nodes):
        raise ValueError("skip must be 'gather' or 'slice' in a file that is quantised, got 'if' "
                         f'in {source}')
    deciding = [node.name for node in nodes if f'.{MASKER}.' in node.name]

    class Reader(CalibrationDataReader):
        """Hands on one batch after another."""

        def __init__(self):
            self.rest = iter(batches)

        def get_next(self):
            x = next(self.rest, None)
            return x if x is None else {INPUT: x.numpy()}

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it recommends to fuse norms, which are folded
    try:
        with replacing(path) as part:
            quantize_static(
                str(source), str(part), Reader(), op_types_to_quantize=['Conv'],
                per_channel=True, nodes_to_exclude=deciding,
                quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8)
    finally:
        logging.root.setLevel(level)
    return Path(path)
