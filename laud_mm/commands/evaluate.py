"""What tools/test.py adds to an evaluation: painted images, test-time augmentation, a dump."""
import copy
import inspect
from typing import Any

from laud_mm.utils.stack import require_packages

require_packages('tools/test.py', 'mmengine')

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults, Evaluator
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from laud_mm.specs import find_backbone_config

# Hook and visualizer that paint where a config names none.
_PAINTERS = dict(mmdet=('mmdet.DetVisualizationHook', 'mmdet.DetLocalVisualizer'),
                 mmpretrain=('mmpretrain.VisualizationHook', 'mmpretrain.UniversalVisualizer'))
# As the test tools of both have them.
_TTA_MODELS = dict(
    mmdet=dict(type='DetTTAModel', tta_cfg=dict(
        nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
    mmpretrain=dict(type='mmpretrain.AverageClsScoreTTA'))
_DETECTION_PACK = dict(type='mmdet.PackDetInputs', meta_keys=(
    'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction'))


def set_execution(cfg: Config, execution: str | None = None) -> str | None:
    """Set how the LAUD backbone of a config runs.

    Args:
        cfg (Config): Changed in place.
        execution (str, optional): Default: as the config has it.

    Returns:
        str | None: How it runs; None for a config without one LAUD backbone.

    Raises:
        ValueError: If there is not one LAUD backbone to set it for.
    """
    try:
        _, backbone = find_backbone_config(cfg.get('model'))
    except ValueError as error:
        if execution:
            raise ValueError(f'--execution must be left out: {error}') from error
        return None
    if execution:
        backbone['execution'] = execution
    return backbone.get('execution', 'auto')


def paint_to(cfg: Config, folder: str) -> None:
    """Let the visualization hook of a config paint the images of a test.

    Args:
        cfg (Config): Changed in place.
        folder (str): Where to, as the hook or else the visualizer takes it.

    Raises:
        ValueError: If the config names no hook and its scope has no default, or the hook is
            none that paints.
    """
    hooks, scope = cfg.get('default_hooks') or {}, cfg.get('default_scope')
    painter = dict(hooks.get('visualization') or {})
    kind, visualizer = _PAINTERS.get(scope, (None, None))
    if not painter.setdefault('type', kind):
        raise ValueError('--show-dir needs the hook that paints in default_hooks.visualization '
                         f'of a config whose default_scope is {scope!r}, got none')
    arguments = _arguments(painter, scope)
    switch = next((name for name in ('draw', 'enable') if name in arguments), None)
    if switch is None:
        raise ValueError('--show-dir needs a hook with an argument `draw` or `enable` in '
                         f'default_hooks.visualization, got {painter["type"]}')
    painter[switch] = True
    if 'interval' in arguments:
        painter.setdefault('interval', 1)
    if visualizer and not cfg.get('visualizer'):
        cfg.visualizer = dict(type=visualizer)
    place = next((name for name in ('test_out_dir', 'out_dir') if name in arguments), None)
    if place is not None:
        painter[place] = folder
    else:  # as in mmseg, whose hook leaves files to the visualizer
        backends = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
        cfg.visualizer = dict(cfg.get('visualizer') or backends, save_dir=folder)
    cfg.default_hooks = dict(hooks, visualization=painter)


def _arguments(hook, scope):
    """Names of the arguments of a hook that a config names."""
    kind = hook['type']
    if isinstance(kind, str):
        with HOOKS.switch_scope_and_registry(hook.get('_scope_', scope)) as registry:
            kind = registry.get(kind)
        if kind is None:
            raise ValueError('default_hooks.visualization.type must be a registered hook, '
                             f'got {hook["type"]!r}')
    return inspect.signature(kind).parameters


def use_tta(cfg: Config) -> None:
    """Evaluate with test-time augmentation: the config's `tta_model` and `tta_pipeline`.

    What is missing becomes what the test tools of mmdet and mmpretrain take: each image as it
    is and flipped.

    Args:
        cfg (Config): Changed in place.

    Raises:
        ValueError: If something is missing and the config's scope has no default.
    """
    scope = cfg.get('default_scope')
    missing = [field for field in ('tta_model', 'tta_pipeline') if not cfg.get(field)]
    if missing and scope not in _TTA_MODELS:
        raise ValueError(f'--tta needs {" and ".join(missing)} in a config whose default_scope '
                         f'is {scope!r}: only {" and ".join(_TTA_MODELS)} have defaults')
    datasets = list(_with_pipeline(cfg.test_dataloader.dataset))
    if 'tta_pipeline' in missing:
        *steps, pack = copy.deepcopy(datasets[0].pipeline)
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        cfg.tta_pipeline = [*steps, dict(type='TestTimeAug', transforms=[
            flips, [_DETECTION_PACK if scope == 'mmdet' else pack]])]
    for dataset in datasets:
        dataset.pipeline = cfg.tta_pipeline
    if 'tta_model' in missing:
        cfg.tta_model = _TTA_MODELS[scope]
    cfg.model = ConfigDict(cfg.tta_model, module=cfg.model)


def _with_pipeline(dataset):
    """The datasets of a config that have a pipeline, inside wrappers."""
    if dataset.get('pipeline'):
        yield dataset
    for inner in dataset.get('datasets') or filter(None, [dataset.get('dataset')]):
        yield from _with_pipeline(inner)


class PredictionDump(Hook):
    """Write the predictions of a test to a pickle file.

    A hook, not one of the evaluator's metrics, because evaluators such as mmdet's
    `MultiDatasetsEvaluator` ask each metric for a data set of its own.

    Args:
        path (str): File to write, `.pkl` or `.pickle`.
        scope (str, optional): Of the config; mmdet's predictions have their masks encoded.
    """

    def __init__(self, path: str, scope: str | None = None):
        metric: Any = DumpResults
        if scope == 'mmdet':
            from mmdet.evaluation import DumpDetResults as metric
        self.evaluator = Evaluator([metric(out_file_path=path)])

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.evaluator.process(outputs, data_batch)

    def after_test_epoch(self, runner, metrics=None):
        self.evaluator.evaluate(len(runner.test_dataloader.dataset))
