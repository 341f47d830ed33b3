# Faster R-CNN of two classes, ResNet-101 with spatial skipping, latency reported for a Nano.
_base_ = '../../laud/faster_rcnn_laud_r101.py'
model = dict(
    backbone=dict(paradigm='spatial', spatial_granularity=(4, 4, 2, 1)),
    roi_head=dict(bbox_head=dict(num_classes=2)))
default_hooks = dict(activation=dict(target=0.6), latency=dict(devices='Nano'))
data = dict(dataset=dict(metainfo=dict(classes=('cat', 'dog'))))
train_dataloader = val_dataloader = test_dataloader = data
