"""Artefacts give the skipping network's numbers, in a Python that has no mm* package."""
import json
import subprocess
import sys

import pytest
import torch

from laud_mm.deploy import deploy, load, measure_scales, write_artefact
from laud_mm.deploy.artefact import export_deployed
from laud_mm.ops import use_references

from ..conftest import ROOT
from .nets import NETS, SIZES, assert_equal, build, deployed_pair, images, run

# Loads an artefact where no mm* package can be imported, and writes what it gives.
BARE = """
import sys

sys.modules.update(dict.fromkeys(('mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'laud_mm.models')))
import torch
from laud_mm.deploy import load
folder, images, out = sys.argv[1:]
net = load(folder)
torch.save([net(x) for x in torch.load(images)], out)
"""


@pytest.mark.parametrize('name, paradigm', NETS)
def test_one_exported_program_serves_all_sizes(name, paradigm):
    net, deployed = deployed_pair(name, paradigm)
    program = export_deployed(deployed, (64, 96))
    assert_equal(net, program.module())


@pytest.mark.slow
@pytest.mark.parametrize('name, paradigm, kind', [
    ('LAUDResNet', 'layer', 'aoti'), ('LAUDRegNet', 'both', 'aoti'),
    ('LAUDResNet', 'channel', 'compile')])
def test_an_artefact_runs_without_mm(name, paradigm, kind, tmp_path):
    net, deployed = deployed_pair(name, paradigm)
    card = write_artefact(deployed, tmp_path, kind, (64, 64))
    assert card == json.loads((tmp_path / 'card.json').read_text())
    assert_equal(net, load(tmp_path))

    batches = [images(*size, 7) for size in SIZES]
    torch.save(batches, tmp_path / 'images.pt')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', BARE, str(tmp_path),
                           str(tmp_path / 'images.pt'), str(tmp_path / 'out.pt')],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = torch.load(tmp_path / 'out.pt')
    for x, (outputs, decisions) in zip(batches, results):
        expected, masks = run(net, x)
        assert all(torch.allclose(y, e, atol=1e-4) for y, e in zip(outputs, expected))
        assert decisions.keys() == masks.keys() == set(card['decisions'])
        assert all(torch.equal(decisions[key], mask) for key, mask in masks.items())

    with pytest.raises(ValueError, match=r'images must be \(N, 3, H, W\).*got shape \(1, 3, 32'):
        load(tmp_path)(torch.zeros(1, 3, 32, 64))
    with pytest.raises(ValueError, match='images must be float32 on cpu, got torch.float64'):
        load(tmp_path)(torch.zeros(1, 3, 64, 64, dtype=torch.float64))
    for key, value in (('torch', '2.0.0'), ('cpu_isa', 'avx1')):
        (tmp_path / 'card.json').write_text(json.dumps(dict(card, **{key: value})))
        with pytest.raises(ValueError, match=f'must be of {key} .*got .{value}.: deploy again'):
            load(tmp_path)
    with use_references(), pytest.raises(RuntimeError, match='needs the compiled operations'):
        load(tmp_path)
    (tmp_path / 'card.json').write_text(json.dumps(card))
    (tmp_path / 'net.pt2').unlink()
    with pytest.raises(ValueError, match='net.pt2 beside it'):
        load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['aoti', 'compile'])
@pytest.mark.parametrize('paradigm', ['layer', ('layer', 'spatial')])
def test_an_artefact_of_integers_gives_the_quantised_networks_numbers(kind, paradigm, tmp_path):
    net = build('LAUDResNet', paradigm)
    scales = measure_scales(net, [images(2, 64, 80, seed) for seed in range(3)])
    quantised = deploy(net, quantized=scales, with_decisions=True)
    card = write_artefact(quantised, tmp_path, kind, (64, 64))
    assert card['computes_in'] == 'int8'
    artefact, rates = load(tmp_path), []
    for seed, size in enumerate(SIZES):
        x = images(*size, seed)
        (expected, masks), (found, own) = quantised(x), artefact(x)
        assert own.keys() == masks.keys() == set(card['decisions'])
        assert all(torch.equal(own[key], mask) for key, mask in masks.items())
        assert all(map(torch.equal, found, expected))
        rates += [mask.float().mean().item() for mask in masks.values()]
    assert 0 < sum(rates) / len(rates) < 1


def test_bad_artefacts_are_named(tmp_path):
    _, deployed = deployed_pair('LAUDResNet', 'layer')
    with pytest.raises(ValueError, match="to must be one of 'aoti', 'compile', .* got 'tensorrt'"):
        write_artefact(deployed, tmp_path, 'tensorrt')
    with use_references(), pytest.raises(RuntimeError, match='calls the compiled operations'):
        write_artefact(deployed, tmp_path)
    with pytest.raises(ValueError, match='artefact must be a folder'):
        load(tmp_path / 'missing')
    (tmp_path / 'card.json').write_text('{"format": "other", "version": 1, "kind": "aoti"}')
    with pytest.raises(ValueError, match="must have format 'laud_mm artefact'"):
        load(tmp_path)
