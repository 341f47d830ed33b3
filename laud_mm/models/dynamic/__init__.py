"""Dynamic execution: maskers make Decisions, executors obey them."""
from .bottleneck_run import BottleneckRun, MapSums, StemRun
from .control import force_rate, override_decisions, replay
from .convnext import DownsampleRun, FoldedConvNeXt, fold_convnext, fold_downsampling
from .decision import Decision, Masks, TransformerDecision, decision_rates, expand_patches, halo
from .excitation import Excitation, SqueezeExcitation
from .execution import (
                       Execution,
                       ForwardPass,
                       current_execution,
                       current_pass,
                       executing,
                       forward_pass,
)
from .executor import run_program, run_steps
from .fold_cache import FoldCache, PassWatch
from .folding import FoldedBottleneck, FoldedConv, fold_conv_norm
from .masked import run_masked
from .maskers import BlockMasker, ChannelMasker, MaskerSet, SpatialMasker, gumbel_decide
from .record import ActivationCost, ActivationRecord, BlockActivity
from .run_table import RUN_TABLE, runs

__all__ = ['ActivationCost', 'ActivationRecord', 'BlockActivity', 'BlockMasker', 'BottleneckRun',
           'ChannelMasker', 'Decision', 'DownsampleRun', 'Excitation', 'Execution', 'FoldCache',
           'FoldedBottleneck', 'FoldedConv', 'FoldedConvNeXt', 'ForwardPass', 'MapSums',
           'MaskerSet', 'Masks', 'PassWatch', 'RUN_TABLE', 'SpatialMasker', 'SqueezeExcitation',
           'StemRun', 'TransformerDecision', 'current_execution', 'current_pass',
           'decision_rates', 'executing', 'expand_patches', 'fold_conv_norm', 'fold_convnext',
           'fold_downsampling', 'force_rate', 'forward_pass', 'gumbel_decide', 'halo',
           'override_decisions', 'replay', 'run_masked', 'run_program', 'run_steps', 'runs']
