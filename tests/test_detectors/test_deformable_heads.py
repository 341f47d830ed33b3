"""Detectors whose deformable convolutions insist on contiguous maps."""
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

mmdet = pytest.importorskip('mmdet')
CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
NAMES = ('reppoints/reppoints-moment_r50_fpn_1x_coco', 'tood/tood_r50_fpn_1x_coco',
         'foveabox/fovea_r50_fpn_gn-head-align_4xb4-2x_coco', 'vfnet/vfnet_r50_fpn_1x_coco',
         'dyhead/atss_r50_fpn_dyhead_1x_coco')
KEPT = ('depth', 'num_stages', 'out_indices', 'norm_cfg', 'norm_eval', 'style')


@pytest.mark.parametrize('paradigm', ['spatial', 'channel', 'layer'])
@pytest.mark.parametrize('name', NAMES, ids=[Path(n).parts[0] for n in NAMES])
def test_they_detect_alike_masked_and_skipping(name, paradigm):
    from mmdet.testing import demo_mm_inputs
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    init_default_scope('mmdet')
    model = Config.fromfile(CONFIGS / f'{name}.py').model
    model.backbone = dict(type='laud_mm.LAUDResNet', base_channels=8, paradigm=paradigm,
                          **{k: v for k, v in model.backbone.items() if k in KEPT})
    neck = model.neck[0] if isinstance(model.neck, list) else model.neck
    neck.in_channels = [32, 64, 128, 256]
    detector = MODELS.build(model).eval()
    data = detector.data_preprocessor(demo_mm_inputs(1, [[3, 64, 64]]), False)
    found = []
    for mode in ('masked', 'skipping'):
        with torch.no_grad(), detector.backbone.executing(mode=mode):
            assert all(x.is_contiguous() for x in detector.backbone(data['inputs']))
            found.append(detector.predict(data['inputs'], data['data_samples'])[0].pred_instances)
    torch.testing.assert_close(found[0].scores, found[1].scores, rtol=1e-3, atol=1e-4)
