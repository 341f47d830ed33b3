"""Pictures show what was computed, and the report holds all of them."""
import json
import re

import numpy as np
import pytest
import torch

from laud_mm.html_report import write_report
from laud_mm.inspection import inspect_set, to_pictures
from laud_mm.visualization import has_overlays, overlay, patch_pixels, save_record_picture

from .conftest import TINY_REGNET, TINY_T2T
from .toy import ToyClassifier, ToyImages

PARADIGMS = ('layer', 'channel', 'spatial')


class Preprocessor(torch.nn.Module):
    """What undoing a normalisation needs to know."""

    def __init__(self, rgb=True):
        super().__init__()
        self.mean, self.std = torch.tensor([10.0, 20, 30]), torch.tensor([2.0, 4, 8])
        self._channel_conversion = rgb


class Sample:
    def __init__(self, label):
        self.gt_label = torch.tensor([label])


class InspectedClassifier(ToyClassifier):
    """A toy classifier that takes batches as mmpretrain's do."""

    def __init__(self, **backbone):
        super().__init__(**backbone)
        self.data_preprocessor = Preprocessor()

    def test_step(self, data):
        return self(torch.stack(data['inputs']))


def lively(model):
    for masker in model.backbone.maskers():
        for parameter in masker.parameters():
            torch.nn.init.normal_(parameter, std=1.0)
    return model.eval()


def batches(count=6, size=64):
    images = ToyImages(count, size)
    for i in range(0, count, 2):
        pair = [images[i], images[i + 1]]
        yield dict(inputs=[p['inputs'] for p in pair],
                   data_samples=[Sample(int(p['labels'])) for p in pair])


def test_an_overlay_keeps_what_was_computed_and_darkens_the_rest():
    image = np.full((5, 6, 3), 200, np.uint8)
    shown = overlay(image, np.array([[1.0, 0.0], [0.0, 1.0]]), 3)
    assert (shown[:3, :3] == 200).all() and (shown[3:, 3:] == 200).all()
    assert (shown[:3, 3:] == 50).all() and (shown[3:, :3] == 50).all()


def test_patches_lie_where_the_block_saw_them(make_net):
    for arch, stem in ((50, 4), (TINY_REGNET, 2)):
        net = make_net(arch, paradigm='spatial', spatial_granularity=(4, 4, 2, 1))
        with torch.no_grad():
            net(torch.rand(1, 3, 64, 96))
        blocks = net.record.blocks
        pixels = dict(zip((b.shape.stage for b in blocks), patch_pixels(net.record)))
        first = blocks[0].shape.stride * stem  # stride of the first stage's output
        assert pixels == {0: 4 * first, 1: 8 * first, 2: 8 * first, 3: 8 * first}


@pytest.mark.parametrize('size', [(161, 160), (97, 33), (224, 250), (31, 65)])
@pytest.mark.parametrize('kwargs', [{}, dict(strides=(1, 1, 2, 1)), dict(deep_stem=True)], ids=str)
def test_overlays_of_any_size_darken_what_an_image_has_skipped(make_net, size, kwargs, tmp_path):
    net = make_net(paradigm='spatial', **kwargs)
    with torch.no_grad():
        net(torch.rand(1, 3, *size))
    image = np.full((*size, 3), 200, np.uint8)
    save_record_picture(tmp_path / 'a.png', image, net.record)
    for block, pixels in zip(net.record.blocks, patch_pixels(net.record)):
        grid = block.decision.patches.shape[1:]
        # The grid covers the image with no whole patch to spare.
        assert all((n - 1) * pixels < side <= n * pixels for n, side in zip(grid, size))
        units = np.zeros(grid)
        units[-1, -1] = 1
        shown = overlay(image, units, pixels)
        bright = (shown == 200).all(-1)
        assert bright[-1, -1] and bright.sum() == np.prod(
            [side - (n - 1) * pixels for n, side in zip(grid, size)])


@pytest.mark.parametrize('rgb', [True, False])
def test_normalisation_is_undone(rgb):
    picture = torch.randint(0, 256, (1, 3, 4, 5)).float()
    own = Preprocessor(rgb)
    images = (picture - own.mean.view(3, 1, 1)) / own.std.view(3, 1, 1)
    shown = torch.from_numpy(to_pictures(images, own)).permute(0, 3, 1, 2)
    assert torch.equal(shown, (picture if rgb else picture.flip(1)).byte())


@pytest.mark.parametrize('channels', [1, 2, 4])
def test_images_of_other_channels_become_pictures(channels):
    own = Preprocessor()
    own.mean, own.std = torch.full((channels,), 10.0), torch.full((channels,), 2.0)
    shown = to_pictures(torch.full((2, channels, 4, 5), 3.0), own)
    assert shown.shape == (2, 4, 5, 3) and (shown == 16).all()


def test_normalisation_of_several_branches_is_undone():
    several = torch.nn.Module()
    several.data_preprocessor = Preprocessor()
    images = torch.randn(1, 3, 4, 5)
    assert (to_pictures(images, several) == to_pictures(images, Preprocessor())).all()


@pytest.mark.parametrize('channels', [1, 4])
def test_a_set_of_other_channels_is_inspected(channels, tmp_path):
    model = ToyClassifier(paradigm='spatial', in_channels=channels).eval()
    model.data_preprocessor = torch.nn.Identity()
    model.test_step = lambda data: model(data['inputs'])
    batch = dict(inputs=torch.rand(2, channels, 33, 47) * 255, data_samples=[Sample(0)] * 2)
    found = inspect_set(model, [batch], 2, 2)
    assert len(found.fractions) == 2 and found.seen[0].image.shape == (33, 47, 3)
    save_record_picture(tmp_path / 'a.png', found.seen[0].image, found.seen[0].record)


@pytest.mark.parametrize('paradigm', PARADIGMS)
def test_a_set_is_inspected_image_by_image(paradigm):
    model = lively(InspectedClassifier(paradigm=paradigm))
    found = inspect_set(model, list(batches()), pictures=2)
    assert found.rates.shape == (16, 6) and found.fractions.shape == (6,)
    assert len(found.labels) == 6 and len(found.seen) == 2
    assert found.least[0].fraction == pytest.approx(found.fractions.min())
    assert found.most[0].fraction == pytest.approx(found.fractions.max())
    assert 0 < found.rates.mean() < 1


def test_a_set_stops_where_it_is_told():
    model = lively(InspectedClassifier())
    assert len(inspect_set(model, list(batches()), max_images=3).fractions) == 4


def test_a_static_network_has_nothing_to_show():
    with pytest.raises(ValueError, match='decides on nothing'):
        inspect_set(InspectedClassifier(paradigm=None).eval(), list(batches(2)))
    with pytest.raises(ValueError, match='no image'):
        inspect_set(InspectedClassifier().eval(), [])


@pytest.mark.parametrize('arch, paradigm', [(50, 'layer'), (50, 'both'), (TINY_T2T, 'token')],
                         ids=['layer', 'both', 'token'])
def test_every_kind_of_decision_has_a_picture(make_net, tmp_path, arch, paradigm):
    net = make_net(arch, paradigm=paradigm)
    with torch.no_grad():
        net(torch.rand(1, 3, 64, 64))
    assert has_overlays(net.record) == (paradigm == 'both')
    save_record_picture(tmp_path / 'new' / 'a.png', np.zeros((64, 64, 3), np.uint8), net.record)
    assert (tmp_path / 'new' / 'a.png').read_bytes()[1:4] == b'PNG'


@pytest.mark.parametrize('paradigm', ['channel', 'spatial'])
def test_the_report_shows_pictures_tables_and_the_run(paradigm, tmp_path):
    run = tmp_path / 'run'
    (run / 'log' / 'latency').mkdir(parents=True)
    (run / 'log' / 'results.json').write_text(json.dumps(dict(metrics={'accuracy/top1': 97.5})))
    (run / 'log' / 'latency' / 'test.json').write_text(json.dumps(dict(
        stamp=dict(device='some <cpu>'),
        measured=dict(dynamic=dict(mean_ms=1.0), static=dict(mean_ms=2.0)),
        predicted=dict(TX2=dict(latency_ms=3.0, static_ms=4.0)))))
    # A masked evaluation that came later is not what skipping took.
    (run / 'masked' / 'latency').mkdir(parents=True)
    (run / 'masked' / 'latency' / 'test.json').write_text(json.dumps(dict(
        stamp=dict(device='masked', execution='masked'),
        measured=dict(dynamic=dict(mean_ms=6.0), static=dict(mean_ms=2.0)))))
    (run / 'log' / 'scalars.json').write_text('\n'.join(
        json.dumps(dict(iter=i, loss=1 / (i + 1))) for i in range(3)))
    model = lively(InspectedClassifier(paradigm=paradigm))
    page = write_report(tmp_path / 'out', 'toy <net>', inspect_set(model, list(batches()),
                                                                   pictures=1), run)
    text = page.read_text()
    pictures = re.findall(r'src="([^"]+)"', text)
    assert len(pictures) == 6 and all((page.parent / path).is_file() for path in pictures)
    assert {p.name for p in (page.parent / 'pictures').iterdir()} == {
        path.split('/')[1] for path in pictures}
    for part in ('toy &lt;net&gt;', 'some &lt;cpu&gt;', 'accuracy/top1', '97.5', 'TX2', '0.75',
                 'layer1.0', 'FLOPs fraction'):
        assert part in text
    assert 'execution: masked' not in text
