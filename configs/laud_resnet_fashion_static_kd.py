# A narrower static net on Fashion-MNIST that learns from the static net of full width.
_base_ = './laud_resnet_fashion_static.py'

teacher = dict(
    checkpoint='work_dirs/fashion/static/epoch_10.pth',
    backbone=dict(type='laud_mm.LAUDResNet', depth=50, in_channels=1, base_channels=16,
                  deep_stem=True, paradigm=None, num_stages=4, out_indices=(3, )),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=512))
model = dict(
    type='laud_mm.DistillationClassifier', teacher=teacher, init_student=False,
    loss_kd=dict(weight=0.5, temperature=4.0),
    backbone=dict(base_channels=8), head=dict(in_channels=256))
