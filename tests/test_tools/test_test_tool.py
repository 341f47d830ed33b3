"""tools/test.py on two tiny images: painting, test-time augmentation, dumps, odd metrics."""
import json
import pickle
import runpy
import sys
import uuid

import cv2
import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, Registry
from mmengine.visualization import Visualizer

from laud_mm.commands.evaluate import paint_to, use_tta
from laud_mm.demo.detection_set import build_detection_set

from ..conftest import ROOT
from ..test_detectors.tiny import build_detector, tiny_config

OTHER_HOOKS = Registry('hook', parent=HOOKS, scope='otherseg')


@OTHER_HOOKS.register_module()
class SegVisualizationHook(Hook):
    """Takes what mmseg's hook takes: no folder."""

    def __init__(self, draw=False, interval=50, show=False):
        self.draw, self.interval = draw, interval

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.draw:
            runner.visualizer.add_image('first', np.zeros((4, 4, 3), np.uint8), self.interval)


@OTHER_HOOKS.register_module()
class PoseHook(Hook):
    def __init__(self, enable=False, out_dir=None):
        pass


@METRICS.register_module()
class OddMetric(CocoMetric):
    """Says more than numbers."""

    def compute_metrics(self, results):
        return dict(per_class=[0.5, float('nan')], tensor=torch.tensor(2.0), verdict='good',
                    bad=float('inf'))


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return build_detection_set(tmp_path_factory.mktemp('data') / 'set', num_train=1, num_val=2,
                               image_size=64)


@pytest.fixture
def cfg(data_root, tmp_path):
    return tiny_config('retinanet', data_root, tmp_path / 'out')


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Test a config's model with fresh weights: the folder of results, and what was said."""
    def run(cfg, *args):
        if 'latency' in cfg.default_hooks:
            cfg.default_hooks.latency.interval = 0
        cfg.dump(tmp_path / 'tiny.py')
        if not (tmp_path / 'tiny.pth').exists():
            torch.save(dict(state_dict=build_detector(cfg).state_dict()), tmp_path / 'tiny.pth')
        monkeypatch.setattr(sys, 'argv', ['test.py', str(tmp_path / 'tiny.py'),
                                          str(tmp_path / 'tiny.pth'), *map(str, args)])
        Visualizer._instance_dict.clear()  # a run has a process of its own
        runpy.run_path(str(ROOT / 'tools' / 'test.py'), run_name='__main__')
        return next((tmp_path / 'out').glob('*/results.json')).parent, capsys.readouterr().out
    return run


def results_of(folder):
    return json.loads((folder / 'results.json').read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize('hook', ['as it is', 'absent', None])
def test_images_are_painted_whatever_hooks_a_config_has(run, cfg, hook):
    if hook != 'as it is':
        cfg.default_hooks.pop('visualization')
        cfg.visualizer = None
    if hook is None:
        cfg.default_hooks.visualization = None
    folder, _ = run(cfg, '--show-dir', 'painted')
    assert len(list((folder / 'painted').glob('*.png'))) == 2


def painted(scope, hook, **more):
    cfg = Config(dict(default_scope=scope, **more))
    if hook is not None:
        cfg.default_hooks = dict(visualization=hook)
    paint_to(cfg, 'folder')
    return cfg


@pytest.mark.parametrize('hook', [
    dict(type='SegVisualizationHook'), dict(type='otherseg.SegVisualizationHook'),
    dict(type=SegVisualizationHook)])
def test_a_hook_without_a_folder_leaves_it_to_the_visualizer(hook):
    cfg = painted('otherseg', hook, visualizer=dict(type='SegLocalVisualizer'))
    assert cfg.default_hooks.visualization == dict(hook, draw=True, interval=1)
    assert cfg.visualizer == dict(type='SegLocalVisualizer', save_dir='folder')
    assert painted('otherseg', hook).visualizer.vis_backends == [dict(type='LocalVisBackend')]


def test_a_run_in_another_scope_paints(run, cfg, tmp_path):
    cfg.default_scope = 'otherseg'
    cfg.default_hooks.visualization = dict(type='SegVisualizationHook', interval=7)
    cfg.visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    folder, _ = run(cfg, '--show-dir', tmp_path / 'painted', '--out', tmp_path / 'found.pkl')
    assert 'coco/bbox_mAP' in results_of(folder)['metrics']
    assert (tmp_path / 'painted' / 'vis_data' / 'vis_image' / 'first_7.png').is_file()
    assert len(pickle.loads((tmp_path / 'found.pkl').read_bytes())) == 2


def test_a_hook_of_another_scope_gets_the_arguments_that_it_has():
    cfg = painted('otherseg', dict(type='PoseHook'))
    assert cfg.default_hooks.visualization == dict(type='PoseHook', enable=True, out_dir='folder')
    cfg = painted('otherseg', dict(type='DetVisualizationHook', interval=2, _scope_='mmdet'))
    assert cfg.default_hooks.visualization == dict(
        type='DetVisualizationHook', interval=2, _scope_='mmdet', draw=True, test_out_dir='folder')


def test_classifiers_are_painted_one_by_one():
    pytest.importorskip('mmpretrain')
    cfg = painted('mmpretrain', None)
    assert cfg.default_hooks.visualization == dict(
        type='mmpretrain.VisualizationHook', enable=True, out_dir='folder', interval=1)
    assert cfg.visualizer.type == 'mmpretrain.UniversalVisualizer'


@pytest.mark.parametrize('hook, message', [
    (None, "in default_hooks.visualization of a config whose default_scope is 'otherseg', got "
           'none'),
    (dict(type='Absent'), "must be a registered hook, got 'Absent'"),
    (dict(type='IterTimerHook'), 'an argument `draw` or `enable` in default_hooks.visualization, '
                                 'got IterTimerHook')])
def test_what_cannot_paint_is_refused_before_any_work(run, cfg, hook, message, tmp_path):
    cfg.default_scope = 'otherseg'
    cfg.default_hooks.visualization = hook
    with pytest.raises(SystemExit, match=message):
        run(cfg, '--show-dir', 'painted')
    assert not (tmp_path / 'out').exists()


def test_metrics_of_any_kind_are_written_after_the_evaluation(run, cfg):
    cfg.test_evaluator.type = 'OddMetric'
    folder, said = run(cfg)
    own = {k: v for k, v in results_of(folder)['metrics'].items() if k.startswith('coco/')}
    assert own == {'coco/per_class': [0.5, None], 'coco/tensor': 2.0, 'coco/verdict': 'good',
                   'coco/bad': None}
    assert '| coco/per_class | 0.5, nan |' in said and '| coco/verdict | good |' in said


@pytest.mark.parametrize('several', [False, True])
def test_predictions_are_dumped_with_any_evaluator(run, cfg, tmp_path, several):
    if several:
        dataset = cfg.test_dataloader.dataset
        cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[dataset, dataset])
        cfg.test_evaluator = dict(type='MultiDatasetsEvaluator', dataset_prefixes=['a', 'b'],
                                  metrics=[cfg.test_evaluator, cfg.test_evaluator])
    folder, _ = run(cfg, '--out', tmp_path / 'found.pkl')
    found = pickle.loads((tmp_path / 'found.pkl').read_bytes())
    assert len(found) == (4 if several else 2)
    assert all(len(own['pred_instances']['scores']) for own in found)
    assert not any('gt_instances' in own for own in found)
    names = results_of(folder)['metrics']
    assert ('b/coco/bbox_mAP' if several else 'coco/bbox_mAP') in names


def test_masks_are_dumped_encoded(run, data_root, tmp_path):
    run(tiny_config('mask_rcnn', data_root, tmp_path / 'out'), '--out', tmp_path / 'found.pkl',
        '--cfg-options', 'model.test_cfg.rcnn.score_thr=0.0')
    found = pickle.loads((tmp_path / 'found.pkl').read_bytes())
    assert all('counts' in mask for own in found for mask in own['pred_instances']['masks'])


def test_every_image_is_seen_as_it_is_and_flipped(run, cfg, tmp_path):
    alone, _ = run(cfg, '--out', tmp_path / 'alone.pkl')
    flops = results_of(alone)['metrics']['backbone_flops_static_g']
    (alone / 'results.json').unlink()
    cfg.experiment_name += '_tta'
    cfg.tta_model = cfg.tta_pipeline = None  # what mmdet has for RetinaNet is larger
    both, _ = run(cfg, '--tta', '--execution', 'masked', '--out', tmp_path / 'both.pkl',
                  '--show-dir', 'painted')
    assert len(list((both / 'painted').glob('*.png'))) == 2
    found = results_of(both)
    assert found['metrics']['backbone_flops_static_g'] == pytest.approx(2 * flops)
    assert 'coco/bbox_mAP' in found['metrics'] and found['execution'] == 'masked'
    assert found['tta'] is True
    report = json.loads((both / 'latency' / 'test.json').read_text())
    assert (report['images'], report['views_per_image']) == (2, 2)
    saved = [pickle.loads((tmp_path / f'{n}.pkl').read_bytes()) for n in ('alone', 'both')]
    assert len(saved[1]) == 2 and not torch.equal(*(own[0]['pred_instances']['scores'][:5]
                                                    for own in saved))


def tta_of(scope, **more):
    steps = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    inner = dict(type='Inner', pipeline=steps)
    dataset = dict(type='RepeatDataset', dataset=inner)
    cfg = Config(dict(default_scope=scope, model=dict(type='Net'), **more,
                      test_dataloader=dict(dataset=dataset)))
    use_tta(cfg)
    return cfg.model, cfg.test_dataloader.dataset.dataset.pipeline


def test_defaults_are_those_of_the_frameworks():
    model, pipeline = tta_of('mmpretrain')
    assert model == dict(type='mmpretrain.AverageClsScoreTTA', module=dict(type='Net'))
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    assert pipeline == [dict(type='LoadImageFromFile'), dict(
        type='TestTimeAug', transforms=[flips, [dict(type='PackInputs')]])]
    model, pipeline = tta_of('mmdet')
    assert model.type == 'DetTTAModel' and model.tta_cfg.nms.iou_threshold == 0.5
    assert 'flip_direction' in pipeline[-1].transforms[1][0].meta_keys


def test_a_configs_own_augmentation_is_taken():
    own = dict(tta_model=dict(type='Mine'), tta_pipeline=[dict(type='TestTimeAug')])
    assert tta_of('otherseg', **own) == (dict(type='Mine', module=dict(type='Net')),
                                         own['tta_pipeline'])


def test_augmentation_without_a_default_is_refused():
    with pytest.raises(ValueError, match="--tta needs tta_pipeline in .* 'otherseg': only mmdet"):
        tta_of('otherseg', tta_model=dict(type='Mine'))


def test_a_nested_backbone_is_executed_as_told(run, cfg):
    cfg.model = dict(type='SemiBaseDetector', detector=cfg.model, semi_train_cfg=dict(),
                     semi_test_cfg=dict(predict_on='teacher'), data_preprocessor=dict(
                         type='MultiBranchDataPreprocessor',
                         data_preprocessor=cfg.model.data_preprocessor))
    folder, _ = run(cfg, '--execution', 'masked')
    report = json.loads((folder / 'latency' / 'test.json').read_text())
    assert report['stamp']['execution'] == 'masked' == results_of(folder)['execution']


def test_without_a_laud_backbone_there_is_no_execution_to_set(run, cfg, tmp_path):
    cfg.model.backbone = dict(type='ResNet', depth=50, base_channels=8)
    with pytest.raises(SystemExit, match='--execution must be left out: model must hold'):
        run(cfg, '--execution', 'masked')
    assert not (tmp_path / 'out').exists()
    for name in ('activation', 'latency'):
        cfg.default_hooks.pop(name)
    assert results_of(run(cfg)[0])['execution'] is None


def test_a_classifier_is_augmented_dumped_and_painted(run, tmp_path):
    pytest.importorskip('mmpretrain')
    cfg = Config.fromfile(ROOT / 'configs' / 'laud_resnet_digits_static.py')
    cfg.model.backbone.base_channels, cfg.model.head.in_channels = 8, 256
    for name in map(str, range(10)):
        (tmp_path / 'val' / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / 'val' / name / f'{name}.png'),
                    np.full((48, 48, 3), 20 * int(name), np.uint8))
    cfg.test_dataloader.dataset.data_root = str(tmp_path)
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'out'), f'digits_{uuid.uuid4().hex}'
    with pytest.raises(SystemExit, match='--show-dir must be left out with --tta'):
        run(cfg, '--tta', '--show-dir', tmp_path / 'painted')
    folder, _ = run(cfg, '--tta', '--out', tmp_path / 'a.pkl')
    assert 'accuracy/top1' in results_of(folder)['metrics']
    assert len(pickle.loads((tmp_path / 'a.pkl').read_bytes())) == 10
    cfg.experiment_name += '_painted'
    run(cfg, '--show-dir', tmp_path / 'painted')
    assert len(list((tmp_path / 'painted').glob('*.png'))) == 10
