"""ONNX that skips: graphs of backbones whose blocks run where their maskers say so."""
from .backbone import block_forms, skipping_model, why_not_skipping

__all__ = ['block_forms', 'skipping_model', 'why_not_skipping']
