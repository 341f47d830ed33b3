"""Dynamic execution: maskers make Decisions, executors obey them."""
from .control import force_rate, override_decisions, replay
from .decision import (Decision, Masks, TransformerDecision, decision_rates, expand_patches,
                       halo)
from .dense import run_dense
from .excitation import Excitation, SqueezeExcitation
from .fold_cache import FoldCache
from .folding import FoldedBottleneck, FoldedConv, fold_conv_norm
from .masked import run_masked
from .maskers import BlockMasker, ChannelMasker, MaskerSet, SpatialMasker, gumbel_decide
from .plan import (BlockCase, BlockTimes, CalibratedPlan, ExecutionPlan, MeasuredPlan, active_share,
                   load_plan)
from .record import ActivationCost, ActivationRecord, BlockActivity
from .skipping import run_skipping

__all__ = ['ActivationCost', 'ActivationRecord', 'BlockActivity', 'BlockCase', 'BlockMasker',
           'BlockTimes', 'CalibratedPlan', 'ChannelMasker', 'Decision', 'Excitation',
           'ExecutionPlan', 'FoldCache', 'FoldedBottleneck', 'FoldedConv', 'MaskerSet', 'Masks',
           'MeasuredPlan', 'SpatialMasker', 'SqueezeExcitation', 'TransformerDecision',
           'active_share', 'decision_rates', 'expand_patches', 'fold_conv_norm', 'force_rate',
           'gumbel_decide', 'halo', 'load_plan', 'override_decisions', 'replay', 'run_dense',
           'run_masked', 'run_skipping']
