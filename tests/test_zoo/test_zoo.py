"""The zoo's files are what configs and results say, and no figure is typed by hand."""
import json
import subprocess
import sys

import pytest

from laud_mm.specs import network_spec
from laud_mm.zoo import Results, figures_of, make_page, read_entries, read_results
from laud_mm.zoo.figures import flops_at, rate_for

from ..conftest import ROOT

CONFIGS = sorted((ROOT / 'configs').glob('*.py'))


@pytest.fixture(scope='module')
def entries():
    return read_entries(ROOT / 'configs')


@pytest.mark.slow
def test_nothing_generated_is_stale():
    done = subprocess.run([sys.executable, str(ROOT / 'tools' / 'make_model_zoo.py'), '--check'],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_config_is_in_the_zoo_and_in_one_metafile():
    yaml = pytest.importorskip('yaml')
    page = (ROOT / 'model_zoo.md').read_text()
    metafiles = [yaml.safe_load((ROOT / path).read_text()) for path in
                 yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']]
    listed = [model['Config'] for metafile in metafiles for model in metafile['Models']]
    assert sorted(listed) == [f'configs/{path.name}' for path in CONFIGS]
    assert all(f'(configs/{path.name})' in page for path in CONFIGS)


def test_the_index_is_valid():
    modelindex = pytest.importorskip('modelindex')
    from modelindex.load_model_index import load
    index = load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert modelindex and len(index.models) == len(CONFIGS)


@pytest.mark.parametrize('paradigm, target', [('layer', 0.4), ('spatial', 0.6), ('channel', 0.8)])
def test_the_rate_meets_the_target(paradigm, target):
    network = network_spec('resnet50', paradigm=paradigm)
    rate = rate_for(network, target)
    assert 0 < rate < 1
    assert flops_at(network, rate) / network.static_flops == pytest.approx(target, abs=1e-6)


def test_figures_are_those_of_the_network(entries):
    entry = next(e for e in entries if e.name == 'laud_resnet101_layer_t05_in1k')
    figures = figures_of(entry, {'V100': 'fp32'})
    assert figures.static_parameters_m == pytest.approx(44.549 - 2.049, abs=0.01)  # without fc
    assert figures.flops_static_g == pytest.approx(7.8, abs=0.1)
    assert figures.flops_g == pytest.approx(figures.flops_static_g / 2, rel=1e-3)
    static, dynamic, batch = figures.latency_ms['V100']
    assert batch == 128 and 0.4 < dynamic / static < 0.6


def test_what_was_not_trained_says_so_and_what_was_shows_its_file(entries, tmp_path):
    chosen = [e for e in entries if e.data == 'digits']
    (tmp_path / 'digits-x.json').write_text(json.dumps(dict(rows=[
        dict(name='layer_t06', paradigm='layer', target=0.6, accuracy=97.125)])))
    (tmp_path / 'other.json').write_text(json.dumps([1, 2]))
    figures = {e.name: figures_of(e, {}) for e in chosen}
    published = json.loads((ROOT / 'benchmarks' / 'published.json').read_text())
    page = make_page(chosen, figures, read_results(tmp_path), published)
    lines = {line.split(']')[0].strip('| ['): line for line in page.splitlines() if '](con' in line}
    assert '97.12 % ([file](benchmarks/results/digits-x.json))' in lines['laud_resnet_digits']
    assert 'not trained here' in lines['laud_resnet_digits_spatial']


def test_timings_stand_beside_their_network_only(entries, tmp_path):
    (tmp_path / 'times.json').write_text(json.dumps(dict(
        stamp=dict(name='box', threads=2, precision='float32'),
        results=[dict(network='resnet101', paradigm='spatial', granularity=[8, 4, 7, 1], rate=0.5,
                      batch=8, size=[224, 224], p50_ms=10.0, static_p50_ms=21.0,
                      compiled_p50_ms=20.0, ratio_to_fastest_static=0.51)])))
    results = read_results(tmp_path)
    found = {e.name: results.measured_for(e) for e in entries if results.measured_for(e)}
    assert list(found) == ['laud_resnet101_spatial_s8471_t05_in1k']
    own, = found['laud_resnet101_spatial_s8471_t05_in1k']
    assert (own.latency_ms, own.static_ms, own.ratio) == (10.0, 20.0, 0.51)
    assert own.device == ('box, 2 threads, float32')


@pytest.mark.parametrize('fastest, static_ms', [('openvino_fp32', 15.0), ('compiled', 20.0)])
def test_timings_beside_other_runtimes_name_the_fastest_of_the_same_precision(
        entries, tmp_path, fastest, static_ms):
    (tmp_path / 'times.json').write_text(json.dumps(dict(
        stamp=dict(name='box', threads=2, precision='fp32', runtimes=dict(openvino='2026.4')),
        missing=[], results=[dict(
            network='resnet101', paradigm='layer', granularity=None, rate=0.5, batch=8,
            size=[224, 224], p50_ms=10.0, static_p50_ms=21.0, compiled_p50_ms=20.0,
            openvino_fp32_p50_ms=15.0, openvino_bf16_p50_ms=8.0, fastest_static=fastest,
            ratio_to_fastest_static=0.66, fastest_of_all='openvino_bf16',
            ratio_to_fastest_of_all=1.25)])))
    results = read_results(tmp_path)
    own = next(found for e in entries for found in results.measured_for(e))
    assert (own.static_ms, own.ratio) == (static_ms, 0.66)


def test_every_published_figure_has_a_source():
    published = json.loads((ROOT / 'benchmarks' / 'published.json').read_text())
    claims = [*published['static_accuracy'].values(), *published['latency']]
    assert claims and all(claim['source'] for claim in claims)
    assert Results().accuracy == {}
