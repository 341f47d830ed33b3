"""mmdet's own tools on our configs, and ours on any detector: image demo, FLOPs."""
import importlib.util
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.models import BaseDetector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.structures import PixelData

from laud_mm.demo.detection_set import build_detection_set
from laud_mm.hooks import ActivationHook
from laud_mm.models.backbones import LAUDResNet

from ..test_detectors.tiny import DETECTORS, build_detector, tiny_config
from ..toy import make_runner

mmdet = pytest.importorskip('mmdet')
ROOT = Path(__file__).resolve().parents[2]
MMDET_TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script as a user would, in this process; what it printed."""
    def run(script, *args):
        monkeypatch.setattr(sys, 'argv', [str(script), *map(str, args)])
        runpy.run_path(str(script), run_name='__main__')
        return capsys.readouterr().out
    return run


@pytest.mark.parametrize('detector', DETECTORS)
def test_mmdet_prints_our_configs(run, detector):
    text = run(MMDET_TOOLS / 'misc' / 'print_config.py',
               ROOT / 'configs' / f'{detector}_laud_r50_channel_g2222_t08.py')
    assert "type='laud_mm.LAUDResNet'" in text and 'target=0.8' in text


@pytest.mark.parametrize('detector', ['faster_rcnn', 'mask2former'])
def test_mmdet_browses_the_data_of_our_configs(run, detector, tmp_path):
    root = build_detection_set(tmp_path / 'set', num_train=2, num_val=1, image_size=64)
    run(MMDET_TOOLS / 'analysis_tools' / 'browse_dataset.py',
        ROOT / 'configs' / f'{detector}_laud_demo.py', '--not-show', '--output-dir',
        tmp_path / 'out', '--cfg-options', f'train_dataloader.dataset.data_root={root}/')
    assert len(list((tmp_path / 'out').glob('*.png'))) == 2


def test_mmdet_analyses_our_logs(run, tmp_path, monkeypatch):
    if importlib.util.find_spec('seaborn') is None:  # the tool takes nothing but a style from it
        monkeypatch.setitem(sys.modules, 'seaborn', SimpleNamespace(set_style=lambda style: None))
    make_runner(tmp_path / 'train', [ActivationHook()], epochs=2, default_hooks=dict(
        logger=dict(type='LoggerHook', interval=1))).train()
    log = next((tmp_path / 'train').rglob('scalars.json'))
    tool = MMDET_TOOLS / 'analysis_tools' / 'analyze_logs.py'
    assert 'average iter time' in run(tool, 'cal_train_time', log)
    run(tool, 'plot_curve', log, '--keys', 'loss', 'loss_activation', '--style', 'default',
        '--out', tmp_path / 'curve.png')
    assert (tmp_path / 'curve.png').stat().st_size > 1000


def test_our_flops_are_those_that_mmengine_counts():
    from mmengine.analysis import FlopAnalyzer
    net = LAUDResNet(50, paradigm=None, execution='masked').eval()
    counter = FlopAnalyzer(net, (torch.rand(1, 3, 64, 96),)).unsupported_ops_warnings(False)
    counted = counter.by_operator()['conv']
    assert net.op_specs((64, 96)).static_flops == pytest.approx(counted, rel=1e-3)


def test_flops_of_a_config_by_stage_and_rate(run, tmp_path):
    config = ROOT / 'configs' / 'retinanet_laud_r50.py'
    text = run(ROOT / 'tools' / 'get_flops.py', config, '--shape', 800, 1216, '--rate', 0.5,
               '--json', tmp_path / 'flops.json')
    rows = {r['part']: r for r in json.loads((tmp_path / 'flops.json').read_text())}
    assert list(rows) == ['stem', 'stage 1', 'stage 2', 'stage 3', 'stage 4', 'backbone']
    net = LAUDResNet(**{k: v for k, v in Config.fromfile(config).model.backbone.items()
                        if k not in ('type', 'init_cfg')})
    assert rows['backbone']['static'] == pytest.approx(
        net.op_specs((800, 1216)).static_flops / 1e9)
    assert rows['backbone']['rate 0.5'] < 0.6 * rows['backbone']['static']
    assert 'G multiply-adds' in text


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'photo.jpg'
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
    return path


@pytest.mark.parametrize('detector', DETECTORS)
def test_the_image_demo_draws_objects_beside_what_was_skipped(run, detector, image, tmp_path):
    cfg = tiny_config(detector)
    cfg.dump(tmp_path / 'tiny.py')
    model = build_detector(cfg)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(
        dataset_meta=dict(classes=tuple('abcdef'), palette=[(i, i, i) for i in range(6)]))),
        tmp_path / 'tiny.pth')
    text = run(ROOT / 'tools' / 'image_demo.py', image, tmp_path / 'tiny.py',
               tmp_path / 'tiny.pth', '--score', 0.0, '--out', tmp_path / 'out' / 'demo.png')
    picture = cv2.imread(str(tmp_path / 'out' / 'demo.png'))
    assert picture.shape[1] > picture.shape[0] > 100
    assert 'objects from score 0.0 on; backbone computed ' in text
    assert not text.startswith('0 objects')


def show(run, cfg, image, folder, prefix=''):
    """Run the image demo of a config with fresh weights, saved with a prefix; what it said."""
    cfg.dump(folder / 'tiny.py')
    weights = {prefix + key: value for key, value in build_detector(cfg).state_dict().items()}
    torch.save(dict(state_dict=weights, meta=dict(dataset_meta=dict(classes=tuple('abcdef')))),
               folder / 'tiny.pth')
    said = run(ROOT / 'tools' / 'image_demo.py', image, folder / 'tiny.py', folder / 'tiny.pth',
               '--score', 0.0, '--out', folder / 'demo.png')
    assert cv2.imread(str(folder / 'demo.png')).shape[0] > 100
    return said.splitlines()[-1]


def with_channels(channels):
    cfg = tiny_config('retinanet', in_channels=channels)
    norm = dict(mean=[100.0], std=[50.0]) if channels == 1 else dict(mean=None, std=None)
    cfg.model.data_preprocessor.update(norm, bgr_to_rgb=False)
    return cfg


@pytest.mark.parametrize('channels', [1, 4])
def test_the_image_demo_reads_the_channels_of_the_backbone(run, channels, image, tmp_path):
    if channels == 4:
        image = tmp_path / 'clear.png'
        cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 256, (90, 120, 4), np.uint8))
    assert ' objects from score 0.0 on' in show(run, with_channels(channels), image, tmp_path)


def test_the_image_demo_refuses_an_image_without_the_channels_of_the_backbone(run, image, tmp_path):
    with pytest.raises(SystemExit, match='image must have 4 channels, as in_channels of the '
                                         'backbone says, got 3 in .*photo.jpg'):
        show(run, with_channels(4), image, tmp_path)


def test_the_image_demo_draws_segments_of_things_and_stuff(run, image, tmp_path):
    cfg = tiny_config('mask2former')
    counts = dict(num_things_classes=4, num_stuff_classes=2)
    cfg.model.panoptic_head.update(counts)
    cfg.model.panoptic_head.loss_cls.class_weight = [1.0] * 6 + [0.1]
    cfg.model.panoptic_fusion_head.update(counts)
    cfg.model.test_cfg.update(panoptic_on=True, instance_on=False, object_mask_thr=0.0,
                              iou_thr=0.0)
    found = int(show(run, cfg, image, tmp_path).split(' segments; backbone computed')[0])
    assert found > 0
    cfg.model.test_cfg.update(object_mask_thr=1.0, instance_on=True)
    assert ' objects from score 0.0 on, 0 segments; ' in show(run, cfg, image, tmp_path)


@MODELS.register_module()
class Segmentor(BaseDetector):
    """Says of every pixel what class it is, as mmseg's models do."""

    def __init__(self, backbone, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.backbone = MODELS.build(backbone)

    def predict(self, inputs, samples):
        self.backbone(inputs)
        for sample in samples:
            classes = torch.arange(90 * 120).view(1, 90, 120) % 3
            classes[:, :9] = 255
            sample.pred_sem_seg = PixelData(data=classes)
        return samples

    def loss(self, *args):
        pass

    _forward = extract_feat = loss


def test_the_image_demo_draws_classes_of_pixels(run, image, tmp_path):
    cfg = tiny_config('retinanet')
    cfg.model = dict(type='Segmentor', backbone=cfg.model.backbone,
                     data_preprocessor=cfg.model.data_preprocessor)
    cfg.visualizer = None  # nothing of it is needed
    assert show(run, cfg, image, tmp_path).startswith('3 classes of pixels; backbone computed')


def test_the_image_demo_takes_the_backbone_that_ran_of_a_nested_detector(run, image, tmp_path):
    cfg = tiny_config('retinanet')
    cfg.model = dict(type='SemiBaseDetector', detector=cfg.model, semi_train_cfg=dict(),
                     semi_test_cfg=dict(predict_on='teacher'), data_preprocessor=dict(
                         type='MultiBranchDataPreprocessor',
                         data_preprocessor=cfg.model.data_preprocessor))
    assert ' objects from score 0.0 on; ' in show(run, cfg, image, tmp_path)


@pytest.mark.parametrize('config, size', [
    ('faster_rcnn_laud_r50', '800x1216'), ('laud_resnet50_layer_t05_in1k', '224x224'),
    ('retinanet_laud_demo', '160x160'), ('laud_t2t_vit_14_all_t05_in1k', '224x224')])
def test_flops_are_counted_at_the_size_of_the_configs_images(run, config, size):
    assert f', {size}, G multiply-adds' in run(
        ROOT / 'tools' / 'get_flops.py', ROOT / 'configs' / f'{config}.py')


def test_flops_of_bad_sizes_and_models_are_refused(run, tmp_path):
    tool, config = ROOT / 'tools' / 'get_flops.py', ROOT / 'configs' / 'faster_rcnn_laud_r50.py'
    with pytest.raises(SystemExit, match='--shape must be two positive ints, got 0 32'):
        run(tool, config, '--shape', 0, 32)
    (tmp_path / 'plain.py').write_text("model = dict(type='A', backbone=dict(type='ResNet'))\n")
    with pytest.raises(SystemExit, match='model must hold the config of one LAUD backbone.*none'):
        run(tool, tmp_path / 'plain.py')
    (tmp_path / 'nested.py').write_text("""model = dict(type='Soft', detector=dict(
    backbone=dict(type='laud_mm.LAUDResNet', depth=50, paradigm='layer')))
""")
    assert 'G multiply-adds' in run(tool, tmp_path / 'nested.py')


@pytest.mark.parametrize('name, content, message', [
    ('absent.jpg', None, 'image must be an existing file'),
    ('broken.jpg', b'\xff\xd8 no image', 'not a readable image')])
def test_the_image_demo_refuses_what_it_cannot_read(run, tmp_path, name, content, message):
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match=message):
        run(ROOT / 'tools' / 'image_demo.py', tmp_path / name,
            ROOT / 'configs' / 'retinanet_laud_demo.py', 'absent.pth')
    assert list(tmp_path.glob('*.png')) == []
