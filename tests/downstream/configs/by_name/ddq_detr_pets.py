# DDQ-DETR of two classes, channel skipping in groups of 4, latency reported for a TX2.
_base_ = 'laud_mm::laud/ddq_detr_laud_r50.py'
model = dict(
    backbone=dict(paradigm='channel', channel_granularity=4),
    bbox_head=dict(num_classes=2))
default_hooks = dict(activation=dict(target=0.7), latency=dict(devices='TX2'))
data = dict(dataset=dict(metainfo=dict(classes=('cat', 'dog'))))
train_dataloader = val_dataloader = test_dataloader = data
