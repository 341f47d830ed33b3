"""Write deployed backbones for onnxruntime and OpenVINO."""
from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from laud_mm.specs.arguments import check_choice
from laud_mm.utils.files import replacing

from .runtimes import PACKAGES, need

# How blocks are skipped at a batch of one image: what is faster there, see docs/deploy.md.
SKIP_ONE = dict(onnx='if', openvino='slice')


def write_onnx(deployed: Any, path: str | Path, to: str = 'onnx', skip: str = 'gather'
               ) -> dict:
    """Write a deployed backbone.

    Args:
        deployed (DeployedBackbone): On its own, in float32.
        path (str | Path): The file; OpenVINO's weights go beside it, as `.bin`.
        to (str): 'onnx' or 'openvino'.
        skip (str): How blocks are skipped, see `onnx_model`.

    Returns:
        dict: What a card says: how blocks are skipped (`skips_by`), the form of each by name
        (`forms`), and `versions` of the packages that wrote it.

    Raises:
        RuntimeError: If a package of the extra `deploy` is missing.
        ValueError: If `to` or `skip` is none of theirs, or the backbone does not compute in
            float32.
    """
    check_choice('to', to, SKIP_ONE)
    names = ('onnx', PACKAGES[to])
    found = need(*names)
    from .backbone import onnx_model
    model = onnx_model(deployed, skip)
    if to == 'onnx':
        with replacing(path) as part:
            part.write_bytes(model.SerializeToString())
    else:
        _write_openvino(model, Path(path), found[1])
    forms = next(json.loads(p.value) for p in model.metadata_props if p.key == 'blocks')
    return dict(skips_by=skip, forms=forms, opset=model.opset_import[0].version,
                versions={name: module.__version__ for name, module in zip(names, found)})


def _write_openvino(model, path, openvino):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source = Path(folder, 'net.onnx')
        source.write_bytes(model.SerializeToString())
        save_openvino(openvino.Core().read_model(source), path)


def save_openvino(model: Any, path: Path) -> None:
    """Write an `openvino.Model` as `.xml` and `.bin`, complete or not at all."""
    (openvino,) = need('openvino')
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        own = Path(folder, path.name)
        openvino.save_model(model, own, compress_to_fp16=False)
        for suffix in ('.bin', '.xml'):
            os.replace(own.with_suffix(suffix), path.with_suffix(suffix))
