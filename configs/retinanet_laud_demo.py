# A small-width RetinaNet with layer skipping at t = 0.5, from scratch on the demo set.
_base_ = ['./retinanet_laud_r50.py', './_base_/demo_set.py']
globals().update(_base_.pop('on_demo_set'))

model = dict(
    backbone=dict(base_channels=16, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64, stacked_convs=2, num_classes=6))
