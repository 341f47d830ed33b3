"""All five detectors train with the hooks, evaluate with COCO metrics, and skip what they mask."""
import json
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from laud_mm.demo.detection_set import build_detection_set
from laud_mm.hooks import ActivationHook

from .tiny import DETECTORS, WITH_MASKS, batch_of, build_detector, losses_of, tiny_config, total_of

pytest.importorskip('mmdet')
ITERATIONS = 3
each_detector = pytest.mark.parametrize('detector', DETECTORS)


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return build_detection_set(tmp_path_factory.mktemp('data') / 'set', num_train=6, num_val=2,
                               image_size=64)


@pytest.fixture(scope='module', params=DETECTORS)
def trained(request, data_root, tmp_path_factory):
    """A Runner after three iterations and a validation, and what the detector is called."""
    torch.manual_seed(0)
    cfg = tiny_config(request.param, data_root, tmp_path_factory.mktemp(request.param))
    if cfg.train_cfg.type == 'IterBasedTrainLoop':
        cfg.train_cfg.update(max_iters=ITERATIONS, val_interval=ITERATIONS)
    else:
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return request.param, runner


def scalars(runner, name):
    return runner.message_hub.get_scalar(name).data[0].tolist()


def test_hooks_work_unchanged_in_every_detector_and_loop(trained):
    detector, runner = trained
    assert runner.iter == ITERATIONS
    losses, shares = (scalars(runner, f'train/{k}') for k in ('loss_activation', 'loss'))
    assert len(losses) == ITERATIONS and all(0 < a < b for a, b in zip(losses, shares))
    assert scalars(runner, 'train/gumbel_temperature')[0] == 5.0
    report = json.loads(Path(runner.log_dir, 'latency', 'val_iter_3.json').read_text())
    assert report['images'] == 2 and report['measured']['static']['repeats'] == 2
    assert set(report['predicted']) == {'V100', 'TX2'}


def test_evaluation_gives_coco_metrics_of_boxes_or_masks(trained):
    detector, runner = trained
    kinds = {'bbox', 'segm'} if detector in WITH_MASKS else {'bbox'}
    found = {k.split('/')[2].split('_')[0] for k in runner.message_hub.log_scalars
             if k.startswith('val/coco/')}
    assert found == kinds


def test_masked_and_skipping_evaluation_find_the_same(trained):
    detector, runner = trained
    model, found, recorded = runner.model, {}, {}
    stir(model.backbone)
    for execution in ('masked', 'skipping'):
        model.backbone.execution = execution
        found[execution] = [sample.pred_instances for data in runner.val_dataloader
                            for sample in model.val_step(data)]
        recorded[execution] = model.backbone.record.cost()
    model.backbone.execution = 'auto'
    assert 0.1 < recorded['masked'].mean_rate < 0.95
    assert torch.equal(recorded['masked'].rates, recorded['skipping'].rates)
    for masked, skipping in zip(*found.values()):
        assert len(masked) == len(skipping) > 0
        torch.testing.assert_close(masked.scores.sort()[0], skipping.scores.sort()[0],
                                   rtol=1e-3, atol=1e-4)


def stir(backbone):
    """Maskers that switch off about half of the blocks."""
    generator = torch.Generator().manual_seed(0)
    for masker in backbone.maskers():
        shift = 3.0 if torch.rand((), generator=generator) < 0.5 else -3.0
        with torch.no_grad():
            masker.layer.conv.bias.copy_(torch.tensor([shift, 0.0]))


def images(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *s), dtype=torch.uint8, generator=generator) for s in sizes]


def backbone_gradients(cfg):
    """Of the detector's losses and the backbone's FLOPs, which the hook adds."""
    model = build_detector(cfg).train()
    torch.manual_seed(0)
    losses = losses_of(model, batch_of(images((64, 64), (64, 64))))
    (total_of(losses) + model.backbone.record.cost().fraction.mean()).backward()
    return {n: p.grad for n, p in model.backbone.named_parameters() if p.grad is not None}


def assert_same_gradients(recomputed, plain):
    assert plain.keys() == recomputed.keys() and any('masker' in n for n in plain)
    for name in plain:
        torch.testing.assert_close(recomputed[name], plain[name], rtol=1e-3, atol=1e-4, msg=name)


@each_detector
def test_activation_checkpointing_of_the_backbone_changes_no_gradient(detector):
    assert_same_gradients(*(backbone_gradients(tiny_config(
        detector, with_cp=with_cp, frozen_stages=0, masker=dict(noise=False)))
        for with_cp in (True, False)))


@pytest.mark.parametrize('detector', ['ddq_detr', 'mask2former'])
def test_activation_checkpointing_of_the_encoder_changes_no_gradient(detector):
    pytest.importorskip('fairscale')
    found = []
    for checkpointed in (2, -1):
        cfg = tiny_config(detector, masker=dict(noise=False))
        encoder = (cfg.model.encoder if detector == 'ddq_detr'
                   else cfg.model.panoptic_head.pixel_decoder.encoder)
        encoder.num_cp = checkpointed
        found.append(backbone_gradients(cfg))
    assert_same_gradients(*found)


@each_detector
def test_mixed_precision_leaves_rates_exact_and_features_finite(detector):
    model = build_detector(tiny_config(detector)).train()
    data = model.data_preprocessor(batch_of(images((64, 64), (64, 64))), training=True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        features = model.extract_feat(data['inputs'])
        loss, _ = ActivationHook(target=0.5).loss(model.backbone.record.cost(), 0.0)
    assert features[0].dtype == torch.bfloat16 and loss.dtype == torch.float32
    (loss + sum(f.float().mean() for f in features)).backward()
    assert all(p.grad.isfinite().all() for p in model.backbone.parameters() if p.grad is not None)


# On a CPU, NMS and RoI pooling know no bfloat16, and DDQ's auxiliary loss mixes precisions.
@pytest.mark.parametrize('detector', ['retinanet', 'mask2former'])
def test_mixed_precision_trains_through_the_hook(detector):
    model = build_detector(tiny_config(detector)).train()
    ActivationHook(target=0.5).attach(model)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = losses_of(model, batch_of(images((64, 64), (64, 64))))
    assert losses['loss_activation'] > 0 and total_of(losses).isfinite()
