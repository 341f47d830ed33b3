import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from laud_mm.demo import detection_set
from laud_mm.demo.detection_set import (
    CLASSES,
    SCENES,
    SPLITS,
    DemoSettings,
    build_detection_set,
    compose,
    describe_mask,
    digest,
    load_photos,
    make_objects,
)
from laud_mm.demo.objects import COINS

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'make_demo_data.py'
TINY = {'num_train': 4, 'num_val': 2, 'seed': 0}
TINY_DIGEST = 'd4299cfff27b728936c486f7ebd017a7290fc928e18043a399266456e726e53d'


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return build_detection_set(tmp_path_factory.mktemp('demo') / 'tiny', **TINY)


@pytest.fixture(scope='module')
def photos():
    return load_photos()


def read(root, split):
    return json.loads((root / 'annotations' / f'instances_{split}.json').read_text())


def decode(polygons, size):
    runs = coco_mask.frPyObjects(polygons, size, size)
    return coco_mask.decode(coco_mask.merge(runs)).astype(bool)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_pixels_and_annotations_are_pinned(tiny):
    assert digest(tiny) == TINY_DIGEST


def test_equal_settings_give_equal_sets_and_another_seed_another(tiny, tmp_path):
    again = build_detection_set(tmp_path / 'again', **TINY)
    assert digest(again) == digest(tiny)
    other = build_detection_set(tmp_path / 'other', **{**TINY, 'seed': 1})
    assert digest(other) != digest(tiny)


def test_a_larger_set_extends_a_smaller_one(tiny, tmp_path):
    small = build_detection_set(tmp_path / 'small', num_train=2, num_val=1)
    images = [cv2.imread(str(root / 'train' / '000002.png')) for root in (small, tiny)]
    assert np.array_equal(*images)
    number = len(read(small, 'train')['annotations'])
    assert read(small, 'train')['annotations'] == read(tiny, 'train')['annotations'][:number]


@pytest.mark.parametrize(('split', 'number'), [('train', 4), ('val', 2)])
def test_layout_and_ids(tiny, split, number):
    content = read(tiny, split)
    names = [f'{i:06d}.png' for i in range(1, number + 1)]
    assert sorted(path.name for path in (tiny / split).iterdir()) == names
    assert [image['file_name'] for image in content['images']] == names
    assert [image['id'] for image in content['images']] == list(range(1, number + 1))
    assert [(c['id'], c['name']) for c in content['categories']] == list(enumerate(CLASSES, 1))
    ids = [annotation['id'] for annotation in content['annotations']]
    assert ids == list(range(1, len(ids) + 1))
    for image in content['images']:
        pixels = cv2.imread(str(tiny / split / image['file_name']))
        assert pixels.shape == (image['height'], image['width'], 3) == (160, 160, 3)


@pytest.mark.parametrize('split', SPLITS)
def test_boxes_polygons_and_areas_agree(tiny, split):
    coco = COCO(str(tiny / 'annotations' / f'instances_{split}.json'))
    for image_id in coco.getImgIds():
        assert 1 <= len(coco.getAnnIds(image_id)) <= 5
    for annotation in coco.loadAnns(coco.getAnnIds()):
        assert annotation['iscrowd'] == 0
        assert all(len(p) >= 6 and len(p) % 2 == 0 for p in annotation['segmentation'])
        assert all(0 <= n <= 160 for p in annotation['segmentation'] for n in p)
        runs = coco.annToRLE(annotation)
        assert coco_mask.area(runs) == pytest.approx(annotation['area'], rel=0.05)
        assert coco_mask.toBbox(runs) == pytest.approx(annotation['bbox'], abs=1.01)


@pytest.mark.parametrize('size', [64, 160, 301])
def test_polygons_cover_the_visible_masks(photos, size):
    for split in SPLITS:
        stamps = make_objects(photos, split)
        for seed in range(6):
            rng = np.random.Generator(np.random.PCG64(seed))
            image, objects = compose(rng, split, size, photos, stamps)
            assert image.shape == (size, size, 3) and image.dtype == np.uint8
            assert not sum(mask.astype(int) for _, mask in objects).max() > 1
            for category, mask in objects:
                assert category in CLASSES
                described = describe_mask(mask)
                assert described['area'] == mask.sum() > 0
                assert iou(decode(described['segmentation'], size), mask) >= 0.9


def test_a_box_is_tight_and_a_hole_stays_a_hole():
    y, x = np.mgrid[:60, :60]
    distance = (x - 30) ** 2 + (y - 25) ** 2
    mask = (distance <= 20 ** 2) & (distance > 10 ** 2)
    described = describe_mask(mask)
    assert described['bbox'] == [10.0, 5.0, 41.0, 41.0]
    decoded = decode(described['segmentation'], 60)
    assert not decoded[25, 30] and iou(decoded, mask) >= 0.95


@pytest.mark.parametrize('seed', range(20))
def test_masks_with_many_holes_and_parts_are_traced(seed):
    rng = np.random.Generator(np.random.PCG64(seed))
    mask = np.zeros((80, 80), bool)
    mask[10:70, 10:70] = True
    for _ in range(12):
        x, y, w, h = rng.integers(1, [79, 79, 20, 20])
        mask[y:y + h, x:x + w] = rng.integers(3) == 0
    # The outlines are rectangles, which simplification leaves alone.
    assert iou(decode(describe_mask(mask)['segmentation'], 80), mask) >= 0.99


def test_a_single_pixel_still_gets_a_polygon():
    mask = np.zeros((8, 8), bool)
    mask[3, 4] = True
    described = describe_mask(mask)
    assert described['bbox'] == [4.0, 3.0, 1.0, 1.0]
    assert len(described['segmentation'][0]) >= 6


def test_nothing_is_placed_where_it_hides_too_much():
    rng = np.random.Generator(np.random.PCG64(0))
    cutout = np.full((30, 30, 4), 255, np.uint8)
    spot = np.zeros((64, 64), bool)
    spot[20:44, 20:44] = True
    for _ in range(20):
        layer = detection_set.place(rng, cutout, 64, [('cat', int(spot.sum()), spot)])
        assert (spot & (layer[..., 3] == 0)).sum() >= 0.6 * spot.sum()
    everywhere = np.full((64, 64, 4), 255, np.uint8)
    assert detection_set.place(rng, everywhere, 64, [('cat', int(spot.sum()), spot)]) is None


@pytest.mark.parametrize('turn', range(24))
def test_a_turned_stamp_is_whole(turn):
    stamp = np.full((128, 128, 4), 255, np.uint8)
    cutout = detection_set.transform(stamp, 40, 30, turn)
    area = (cutout[..., 3] >= 128).sum()
    assert area == pytest.approx(40 * 30, rel=0.03)
    assert max(cutout.shape[:2]) <= 53
    if turn % 6 == 0:
        solid = cutout[..., 3] >= 128
        assert {solid.any(axis=0).sum(), solid.any(axis=1).sum()} == {40, 30}


def test_train_and_val_share_no_pixel_of_a_scene_and_no_coin(photos):
    for name, (left, top, right, bottom) in SCENES['train'] + SCENES['val']:
        assert 0 <= left < right <= photos[name].shape[1]
        assert 0 <= top < bottom <= photos[name].shape[0]
    val = dict(SCENES['val'])
    for name, (left, _, right, _) in SCENES['train']:
        if name in val:
            assert right <= val[name][0] or val[name][2] <= left
    coins = [len(make_objects(photos, split)['coin']) for split in SPLITS]
    assert coins == [18, 6] and len(COINS) == 24


def test_a_finished_set_is_reused(tiny, monkeypatch):
    monkeypatch.setattr(detection_set, 'load_photos', lambda: pytest.fail('built again'))
    before = (tiny / 'settings.json').stat().st_mtime_ns
    assert build_detection_set(str(tiny), **TINY) == tiny
    assert (tiny / 'settings.json').stat().st_mtime_ns == before


def test_other_settings_do_not_overwrite_a_set(tiny):
    before = digest(tiny)
    with pytest.raises(FileExistsError, match=f'{tiny}.*other settings'):
        build_detection_set(tiny, **{**TINY, 'seed': 5})
    assert digest(tiny) == before


@pytest.mark.parametrize('content', [None, '', '[]', '{"format": "mine"}'])
def test_a_foreign_folder_is_left_alone(tmp_path, content):
    root = tmp_path / 'mine'
    root.mkdir()
    (root / 'thesis.txt').write_text('draft')
    if content is not None:
        (root / 'settings.json').write_text(content)
    with pytest.raises(FileExistsError, match=f'{root} exists'):
        build_detection_set(root, **TINY)
    assert (root / 'thesis.txt').read_text() == 'draft'
    assert [path.name for path in tmp_path.iterdir()] == ['mine']


def test_a_file_in_the_way_is_left_alone(tmp_path):
    (tmp_path / 'file').write_text('draft')
    with pytest.raises(FileExistsError, match='file exists'):
        build_detection_set(tmp_path / 'file', **TINY)


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    write_split = detection_set.write_split

    def fail_at_val(folder, split, *args):
        if split == 'val':
            raise KeyboardInterrupt
        write_split(folder, split, *args)

    monkeypatch.setattr(detection_set, 'write_split', fail_at_val)
    with pytest.raises(KeyboardInterrupt):
        build_detection_set(tmp_path / 'set', 1, 1, 64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('name', 'value', 'least'), [
    ('num_train', 0, 1), ('num_val', -3, 1), ('image_size', 63, 64), ('seed', -1, 0),
    ('num_train', 2.0, 1), ('num_val', True, 1), ('seed', '7', 0), ('image_size', None, 64)])
def test_bad_arguments_are_named_before_any_work(tmp_path, name, value, least):
    expected = f'{name} is {value!r}, allowed are integers from {least} on'
    with pytest.raises(ValueError, match=expected):
        build_detection_set(tmp_path / 'new' / 'set', **{name: value})
    with pytest.raises(ValueError, match=expected):
        DemoSettings(**{name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('module', 'package'), [
    ('skimage', 'scikit-image'), ('sklearn.datasets', 'scikit-learn'), ('cv2', 'opencv-python')])
def test_a_missing_package_is_named(tmp_path, monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f'pip install .*{package}'):
        build_detection_set(tmp_path / 'set', **TINY)
    assert not list(tmp_path.iterdir())


def test_tool_builds_reports_and_refuses(tmp_path, capsys):
    root = str(tmp_path / 'new' / 'set')
    main = runpy.run_path(str(TOOL))['main']
    main([root, '--num-train', '2', '--num-val', '1', '--image-size', '64', '--seed', '3'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f'demo set: {root}'
    assert lines[1].startswith('train: 2 images; objects: ')
    assert all(name in lines[2] for name in CLASSES)
    with pytest.raises(SystemExit) as caught:
        main([root, '--num-train', '0'])
    assert caught.value.code == 1
    assert 'num_train is 0' in capsys.readouterr().err
