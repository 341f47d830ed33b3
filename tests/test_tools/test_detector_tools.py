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
from mmengine.config import Config

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


def small_detector(tmp_path, cfg, classes=6):
    """A config and weights of a detector, written: their paths."""
    cfg.dump(tmp_path / 'tiny.py')
    names = tuple(f'class {i}' for i in range(classes))
    torch.save(dict(state_dict=build_detector(cfg).state_dict(), meta=dict(dataset_meta=dict(
        classes=names, palette=[(i, i, i) for i in range(classes)]))), tmp_path / 'tiny.pth')
    return tmp_path / 'tiny.py', tmp_path / 'tiny.pth'


@pytest.mark.parametrize('channels', [1, 2, 4])
def test_the_image_demo_reads_as_many_channels_as_the_backbone(run, tmp_path, channels):
    cfg = tiny_config('retinanet', in_channels=channels)
    cfg.model.data_preprocessor.update(
        dict(mean=[100.0], std=[50.0], bgr_to_rgb=False) if channels == 1 else
        dict(mean=None, std=None, bgr_to_rgb=False))
    config, checkpoint = small_detector(tmp_path, cfg)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 4), np.uint8)
    cv2.imwrite(str(tmp_path / 'photo.png'), pixels)
    demo = (ROOT / 'tools' / 'image_demo.py', tmp_path / 'photo.png', config, checkpoint,
            '--out', tmp_path / 'demo.png', '--score', 0.0)
    if channels == 2:
        with pytest.raises(SystemExit, match='image must have 2 channels.*got 4 in .*photo.png'):
            run(*demo)
        assert not (tmp_path / 'demo.png').exists()
        return
    assert 'objects from score 0.0 on' in run(*demo)
    assert cv2.imread(str(tmp_path / 'demo.png')).shape[0] > 100


def test_the_image_demo_draws_panoptic_and_semantic_segments(run, image, tmp_path):
    cfg = Config.fromfile(MMDET_TOOLS.parent / 'configs' / 'panoptic_fpn'
                          / 'panoptic-fpn_r50_fpn_1x_coco.py')
    tiny = tiny_config('faster_rcnn')
    cfg.model.backbone = tiny.model.backbone
    cfg.model.neck.in_channels = tiny.model.neck.in_channels
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    config, checkpoint = small_detector(tmp_path, cfg, 133)
    text = run(ROOT / 'tools' / 'image_demo.py', image, config, checkpoint, '--score', 0.0,
               '--out', tmp_path / 'demo.png')
    assert 'panoptic segments; backbone computed' in text
    assert cv2.imread(str(tmp_path / 'demo.png')).shape[0] > 100


def test_semantic_results_are_counted():
    from mmdet.structures import DetDataSample
    from mmengine.structures import PixelData
    found = DetDataSample()
    found.pred_sem_seg = PixelData(sem_seg=torch.tensor([[[0, 1], [1, 4]]]))
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'tools' / 'image_demo.py')
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    assert demo.count(found, 0.3) == '3 classes of pixels'
    assert demo.count(DetDataSample(), 0.3) == 'nothing'


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
