"""Dynamic execution of transformer blocks: maskers and executors (method, section 6)."""
from .masked import run_masked
from .maskers import SigmoidMasker, TransformerMasker
from .skipping import run_skipping

__all__ = ['SigmoidMasker', 'TransformerMasker', 'run_masked', 'run_skipping']
