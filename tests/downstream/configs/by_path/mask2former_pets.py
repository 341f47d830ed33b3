# Mask2Former of two classes, ResNet-101 with spatial skipping, latency reported for a Nano.
_base_ = '../../laud/mask2former_laud_r101.py'
model = dict(
    backbone=dict(paradigm='spatial', spatial_granularity=(4, 4, 2, 1)),
    panoptic_head=dict(num_things_classes=2,
                       loss_cls=dict(class_weight=[1.0, 1.0, 0.1])),
    panoptic_fusion_head=dict(num_things_classes=2))
default_hooks = dict(activation=dict(target=0.6), latency=dict(devices='Nano'))
data = dict(dataset=dict(metainfo=dict(classes=('cat', 'dog'))))
train_dataloader = val_dataloader = test_dataloader = data
