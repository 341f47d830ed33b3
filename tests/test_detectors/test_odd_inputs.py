"""Strips, grey and broken files, images without objects, blocks that are all off."""
import json

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector
from mmdet.registry import DATASETS
from mmengine.runner import Runner

from laud_mm.demo.detection_set import build_detection_set
from laud_mm.models.dynamic import force_rate

from .test_training import each_detector, images
from .tiny import batch_of, build_detector, losses_of, tiny_config, total_of

SIZES = {'row': (1, 200), 'column': (200, 1), 'banner': (33, 2000), 'pixel': (1, 1)}


def predict(model, image):
    model.eval()
    with torch.no_grad():
        return model.test_step(batch_of([image]))[0].pred_instances


@pytest.mark.parametrize('size', SIZES.values(), ids=SIZES)
@each_detector
def test_strips_are_computed_and_skipped_alike(detector, size):
    model = build_detector(tiny_config(detector, paradigm='spatial'))
    image, found = images(size)[0], []
    for execution in ('masked', 'skipping'):
        model.backbone.execution = execution
        with force_rate(model.backbone, 0.5):
            found.append(predict(model, image))
    assert 0 < model.backbone.record.cost().fraction.item() < 1
    assert len(found[0]) == len(found[1]) and found[0].scores.isfinite().all()
    torch.testing.assert_close(found[0].scores.sort()[0], found[1].scores.sort()[0],
                               rtol=1e-3, atol=1e-4)


@each_detector
def test_with_every_block_off_a_detector_still_answers_and_learns(detector):
    model, image = build_detector(tiny_config(detector)), images((64, 64))[0]
    with force_rate(model.backbone, 0.0):
        assert predict(model, image).scores.isfinite().all()
        cost = model.backbone.record.cost()
        assert cost.mean_rate == 0
        # Stem, shortcuts and maskers are always computed.
        assert 0 < cost.fraction.item() < 0.5
        total = total_of(losses_of(model.train(), batch_of([image, image])))
        total.backward()
    assert total.isfinite()


@each_detector
def test_images_without_objects_have_finite_losses(detector):
    model = build_detector(tiny_config(detector)).train()
    total = total_of(losses_of(model, batch_of(images((64, 64), (64, 64)), boxes_per_image=0)))
    total.backward()
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def demo_model(detector='faster_rcnn'):
    cfg = tiny_config(detector)
    model = build_detector(cfg).eval()
    model.cfg = cfg
    return model


def test_a_grey_file_is_read_as_colour(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'grey.png'), grey)
    cv2.imwrite(str(tmp_path / 'colour.png'), np.repeat(grey[..., None], 3, 2))
    found = [inference_detector(demo_model(), str(tmp_path / f'{name}.png')).pred_instances
             for name in ('grey', 'colour')]
    assert torch.equal(found[0].scores, found[1].scores)


def test_a_corrupt_file_is_named(tmp_path):
    (tmp_path / 'broken.jpg').write_bytes(b'\xff\xd8\xff\xe0 not an image')
    with pytest.raises(Exception, match='broken.jpg'):
        inference_detector(demo_model(), str(tmp_path / 'broken.jpg'))


def test_a_corrupt_file_in_a_set_is_named(tmp_path):
    root = build_detection_set(tmp_path / 'set', num_train=1, num_val=1, image_size=64)
    next((root / 'train').glob('*.png')).write_bytes(b'\x89PNG not an image')
    cfg = tiny_config('retinanet', root, tmp_path / 'out')
    build_detector(cfg)  # registers what the data set needs
    with pytest.raises(Exception, match='000001.png'):
        DATASETS.build(cfg.train_dataloader.dataset)[0]


def test_a_set_without_annotations_is_evaluated(tmp_path):
    root = build_detection_set(tmp_path / 'set', num_train=1, num_val=2, image_size=64)
    path = root / 'annotations' / 'instances_val.json'
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(content, annotations=[])))
    metrics = Runner.from_cfg(tiny_config('faster_rcnn', root, tmp_path / 'out')).val()
    assert metrics['coco/bbox_mAP'] == -1  # as COCO says "no objects"
    assert 0 < metrics['backbone_flops_fraction'] <= 1.01
