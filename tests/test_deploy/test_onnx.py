"""ONNX of deployed networks gives the skipping network's numbers in both runtimes."""
import copy
import json
import sys
from importlib.util import find_spec

import pytest
import torch

from laud_mm.deploy import UnitProfile, deploy, load, write_artefact
from laud_mm.deploy.onnx import (
    OnnxruntimeNet,
    OpenvinoNet,
    quantise_onnx,
    quantise_openvino,
    write_onnx,
)
from laud_mm.deploy.onnx.runtimes import has_bf16
from laud_mm.deploy.tokens import TokenBackbone
from laud_mm.export import largest_difference
from laud_mm.utils.files import to_json

from ..test_detectors.tiny import build_detector, tiny_config
from ..test_export import SMALL
from .nets import NETS, SIZES, assert_equal, build, deployed_pair, images, run

pytest.importorskip('onnx', reason='onnx is not installed: pip install laud-mm[deploy]')
RUNTIMES = dict(onnx='onnxruntime', openvino='openvino')
READERS = dict(onnx=OnnxruntimeNet, openvino=OpenvinoNet)


@pytest.fixture(params=RUNTIMES)
def to(request):
    pytest.importorskip(RUNTIMES[request.param], reason=f'{RUNTIMES[request.param]} is not '
                        'installed: pip install laud-mm[deploy]')
    return request.param


@pytest.fixture
def file(to, tmp_path):
    return tmp_path / dict(onnx='net.onnx', openvino='net.xml')[to]


def reader(to, file):
    """A file as a deployed network with decisions."""
    net = READERS[to](file)

    def run(x):
        found = net(x)
        return found if isinstance(found[-1], dict) else (found, {})
    return run


@pytest.mark.parametrize('name, paradigm', NETS)
def test_one_file_equals_the_skipping_network_at_all_sizes(name, paradigm, to, file):
    net, made = deployed_pair(name, paradigm)
    write_onnx(made, file, to)
    assert_equal(net, reader(to, file))


@pytest.mark.parametrize('paradigm, changes', [
    ('token', {}), ('head', dict(out_type='featmap')), ('layer', dict(out_type='cls_token')),
    (('token', 'head', 'layer'), dict(t2t_type='transformer', out_indices=(0, 3))),
    (None, dict(out_type='avg_featmap', img_size=(32, 40)))])
def test_one_file_equals_the_transformer_at_all_sizes(paradigm, changes, to, file, monkeypatch):
    settings, paradigms = SMALL['LAUDT2TViT']
    monkeypatch.setitem(SMALL, 'LAUDT2TViT', (dict(settings, **changes), paradigms))
    net = build('LAUDT2TViT', paradigm)
    write_onnx(TokenBackbone(net, with_decisions=True), file, to)
    for seed, size in enumerate((*SIZES, (2, 48, 48))):
        x = images(*size, seed)
        (expected, masks), (found, own) = run(net, x), reader(to, file)(x)
        assert largest_difference(found, expected) < 1e-4 and own.keys() == masks.keys()
        assert all(torch.equal(own[key], mask) for key, mask in masks.items())


def test_of_tokens_that_are_off_nothing_is_computed(to, file):
    net = build('LAUDT2TViT', ('token', 'layer'))
    for block in net.blocks()[1:]:
        torch.nn.init.constant_(block.masker.token.fc.bias, -1e9)
        torch.nn.init.constant_(block.masker.layer.fc.bias, -1e9)
        torch.nn.init.constant_(block.attn.proj.weight, float('nan'))
        torch.nn.init.constant_(block.mlp.fc2.weight, float('nan'))
    write_onnx(TokenBackbone(net), file, to)
    assert all(y.isfinite().all() for y in READERS[to](file)(images(2, 48, 48)))


@pytest.mark.parametrize('skip', ['if', 'slice'])
@pytest.mark.parametrize('name, paradigm', [('LAUDResNet', ('layer', 'channel')),
                                            ('LAUDRegNet', 'layer'), ('LAUDRegNet', 'spatial')])
def test_files_for_one_image_equal_the_skipping_network(name, paradigm, skip, to, file):
    net, made = deployed_pair(name, paradigm)
    assert write_onnx(made, file, to, skip)['skips_by'] == skip
    sizes = [(1, *size[1:]) for size in (*SIZES, *SIZES)]
    assert_equal(net, reader(to, file), sizes)


@pytest.mark.parametrize('name, paradigm', NETS)
def test_a_file_planned_for_one_size_equals_the_skipping_network(name, paradigm, to, file):
    net, made = deployed_pair(name, paradigm)
    write_onnx(made, file, to)
    x = images(2, 65, 34)
    expected, _ = run(net, x)
    for precision in READERS[to].precisions:
        if precision == 'fp32' or has_bf16():
            found = READERS[to](file, image_size=(65, 34), precision=precision)(x)
            maps = found[0] if isinstance(found[-1], dict) else found
            # In bfloat16 decisions fall otherwise: it runs.
            assert largest_difference(maps, expected) < (1e-4 if precision == 'fp32' else 1.5)


def test_maps_of_one_position_are_maps_too(to, file):
    net, made = deployed_pair('LAUDRegNet', 'both')
    write_onnx(made, file, to)
    (expected, masks), (found, own) = run(net, images(2, 32, 20)), READERS[to](file)(
        images(2, 32, 20))
    assert found[-1].shape[2:] == (1, 1) and largest_difference(found, expected) < 1e-4
    assert all(torch.equal(own[key], mask) for key, mask in masks.items())


def test_only_samples_that_are_on_are_computed(to, file):
    """A block that computes nothing gives what its shortcut gives, whatever its weights."""
    net, made = deployed_pair('LAUDResNet', 'layer')
    with torch.no_grad():
        for block in made.blocks()[1:]:
            block.weights.masker['layer'].bias.fill_(-1e9)
            block.weights.conv3.weight.fill_(float('nan'))
    for skip in ('gather', 'if', 'slice'):
        write_onnx(made, file, to, skip)
        outputs, decisions = READERS[to](file)(images(1, 48, 56))
        assert all(y.isfinite().all() for y in outputs)
        assert sum(mask.sum() for mask in decisions.values()) <= 1


def test_a_detectors_backbone_gives_its_neck_the_same_maps(to, file):
    model = build_detector(tiny_config('faster_rcnn', paradigm='layer')).eval()
    for masker in model.backbone.maskers():
        torch.nn.init.normal_(masker.layer.conv.weight)
        torch.nn.init.constant_(masker.layer.conv.bias, 0)
    x = images(2, 64, 96)
    with torch.no_grad():
        maps, expected = model.backbone(x), model.extract_feat(x)
        assert len(maps) == 4 and 0 < model.backbone.record.cost().mean_rate < 1
        write_onnx(deploy(model).backbone, file, to)
        model.backbone.forward = READERS[to](file)
        assert largest_difference(model.backbone(x), maps) < 1e-4
        assert largest_difference(model.extract_feat(x), expected) < 1e-4


@pytest.mark.parametrize('paradigm', ['layer', 'channel', 'both'])
def test_a_profile_specialises_the_file(paradigm, to, tmp_path):
    net = build('LAUDResNet', paradigm)
    x = images(1, 48, 48, 3)
    profile = UnitProfile.measure(net, [x])
    made = deploy(net, profile=profile, with_decisions=True)
    card = write_artefact(made, tmp_path, to, one_image=True)
    assert json.loads((tmp_path / 'card.json').read_text()) == to_json(card)
    whole = write_artefact(deploy(net), tmp_path / 'whole', to, one_image=True)
    assert card['net_bytes'] < whole['net_bytes']
    assert card['inputs'][0]['batch'] == 1 and card['skips_by'] in ('if', 'slice')
    if paradigm == 'layer':  # of one image everything is known
        assert {block['computes'] for block in card['blocks']} == {'static', 'shortcut only'}
        assert card['decisions'] == []
    found = load(tmp_path)(x)
    (expected, _) = run(net, x)
    assert largest_difference(found[0] if isinstance(found[-1], dict) else found, expected) < 1e-4
    with pytest.raises(ValueError, match=r'images must be \(N, 3, H, W\), N 1, .* got shape'):
        load(tmp_path)(images(2, 48, 48))


def test_cards_say_what_becomes_of_each_block(tmp_path):
    net = build('LAUDResNet', ('layer', 'channel'))
    card = write_artefact(deploy(net), tmp_path, 'onnx')
    assert {block['computes'] for block in card['blocks']} == {
        'skipped by gather; channel computed, then masked'}


def test_what_cannot_be_written_is_named(tmp_path, monkeypatch):
    net = build('LAUDResNet', 'layer')
    with pytest.raises(ValueError, match='precision must be fp32 for ONNX'):
        write_onnx(deploy(net, precision='bf16'), tmp_path / 'net.onnx')
    with pytest.raises(ValueError, match="one_image must be False for 'aoti'"):
        write_artefact(deploy(net), tmp_path, 'aoti', one_image=True)
    tokens = build('LAUDT2TViT', 'token')
    with pytest.raises(ValueError, match="skip must be 'gather' for tokens, got 'if'"):
        write_onnx(TokenBackbone(tokens), tmp_path / 'net.onnx', skip='if')
    with pytest.raises(ValueError, match='precision must be fp32'):
        TokenBackbone(copy.deepcopy(tokens).double())
    tokens.encoder[1].mlp.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r'as it was built.*encoder.1: '):
        TokenBackbone(tokens)
    for to, name in RUNTIMES.items():
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(RuntimeError, match=rf'{name} is missing .*pip install laud-mm\[deploy'):
            write_artefact(deploy(net), tmp_path, to)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('skip', ['gather', 'slice'])
def test_quantised_files_keep_most_decisions_and_numbers(skip, tmp_path):
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    net, made = deployed_pair('LAUDResNet', 'layer')
    source = tmp_path / 'net.onnx'
    write_onnx(made, source, 'onnx', skip)
    calibration, test = images(16, 48, 56, 1), images(4, 48, 56, 2)
    quantise_onnx(source, tmp_path / 'int8.onnx', calibration.split(1))
    import onnx
    weights = [t for t in onnx.load(tmp_path / 'int8.onnx').graph.initializer if len(t.dims) == 4]
    assert [t.data_type for t in weights if '.masker.' in t.name] == [onnx.TensorProto.FLOAT] * 3
    assert {t.data_type for t in weights if '.masker.' not in t.name} == {onnx.TensorProto.INT8}
    for to, name in RUNTIMES.items():
        if find_spec(name) is None:
            continue
        quantised = READERS[to](tmp_path / 'int8.onnx')
        for x in test.split(1):
            (expected, masks), (found, own) = run(net, x), quantised(x)
            assert all(torch.equal(own[key], mask) for key, mask in masks.items())
            assert 1e-6 < largest_difference(found, expected) < 0.05


@pytest.fixture
def nncf():
    pytest.importorskip('openvino', reason='openvino is not installed')
    return pytest.importorskip('nncf', reason='nncf is not installed: pip install laud-mm[deploy]')


@pytest.mark.parametrize('name, paradigm', [('LAUDResNet', 'layer'), ('LAUDResNet', None),
                                            ('LAUDRegNet', 'spatial')])
@pytest.mark.parametrize('skip', ['gather', 'slice'])
def test_nncf_quantises_a_file_for_openvino(name, paradigm, skip, nncf, tmp_path):
    torch.manual_seed(24)  # some images are on, some off in every block
    net, made = deployed_pair(name, paradigm)
    write_onnx(made, tmp_path / 'net.onnx', 'onnx', skip)
    calibration, test = (images(16, 48, 56, seed) + torch.linspace(-3, 3, 16)[:, None, None, None]
                         for seed in (1, 2))
    if paradigm == 'layer':
        run(net, calibration)
        assert all(0 < mask.layer.float().mean() < 1 for mask in net.record.decisions.values())
    quantise_openvino(tmp_path / 'net.onnx', tmp_path / 'int8.xml', calibration.split(1))
    import openvino
    nodes = openvino.Core().read_model(tmp_path / 'int8.xml').get_ops()
    quantised = [op for op in nodes if op.get_type_name() == 'FakeQuantize']
    assert quantised and not [op for op in quantised if '.masker.' in op.get_friendly_name()]
    # Also where no sample of a batch was on.
    assert all(abs(op.input_value(i).get_node().get_data()).max() < 1e3
               for op in quantised for i in (1, 2))
    quantised, errors = OpenvinoNet(tmp_path / 'int8.xml'), []
    for x in test.split(1):
        (expected, masks), found = run(net, x), quantised(x)
        maps, own = found if isinstance(found[-1], dict) else (found, {})
        if all(torch.equal(own[key], mask) for key, mask in masks.items()):
            errors += [float((y - e).norm() / e.norm()) for y, e in zip(maps, expected)]
    # Of images larger than most of the calibration's, values are cut.
    assert len(errors) >= 8 and 1e-6 < min(errors) and torch.tensor(errors).median() < 0.15, errors


def test_nncf_needs_images_for_which_each_block_is_on(nncf, tmp_path):
    net = build('LAUDResNet', 'layer')
    torch.nn.init.constant_(net.blocks()[1].masker.layer.conv.weight, 0)
    net.blocks()[1].masker.layer.conv.bias.data[:] = torch.tensor([-1, 1])
    write_onnx(deploy(net), tmp_path / 'net.onnx')
    with pytest.raises(ValueError, match='images for which each block is on, got none for some'):
        quantise_openvino(tmp_path / 'net.onnx', tmp_path / 'int8.xml', [images(2, 48, 56)])


def test_what_cannot_be_quantised_is_named(tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    _, made = deployed_pair('LAUDResNet', 'layer')
    write_onnx(made, tmp_path / 'net.onnx', 'onnx', 'if')
    for batches, message in (([images(1, 48, 56)], "skip must be 'gather' or 'slice'"),
                             ([], 'batches must hold images')):
        with pytest.raises(ValueError, match=message):
            quantise_onnx(tmp_path / 'net.onnx', tmp_path / 'int8.onnx', batches)
        if find_spec('nncf') and find_spec('openvino'):
            with pytest.raises(ValueError, match=message):
                quantise_openvino(tmp_path / 'net.onnx', tmp_path / 'int8.xml', batches)
    with pytest.raises(ValueError, match='path must end in .xml, got int8.onnx'):
        quantise_openvino(tmp_path / 'net.onnx', 'int8.onnx', batches)
    monkeypatch.setitem(sys.modules, 'nncf', None)
    if find_spec('openvino'):
        with pytest.raises(RuntimeError, match=r'nncf is missing .*pip install laud-mm\[deploy'):
            quantise_openvino(tmp_path / 'net.onnx', tmp_path / 'int8.xml', batches)
    assert not list(tmp_path.glob('int8.*'))
