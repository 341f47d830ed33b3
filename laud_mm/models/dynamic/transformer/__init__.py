"""Dynamic execution of transformer blocks: maskers and executors (method, section 6)."""
from .masked import attend, run_masked
from .maskers import SigmoidMasker, TransformerMasker
from .run import TokensRun, TransformerRun

__all__ = ['SigmoidMasker', 'TokensRun', 'TransformerMasker', 'TransformerRun', 'attend',
           'run_masked']
