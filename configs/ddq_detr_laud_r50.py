# DDQ-DETR, 4 scales, LAUD-ResNet-50 with layer skipping at t = 0.5; COCO, 12 epochs.
_base_ = 'mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py'

model = dict(backbone=dict(type='laud_mm.LAUDResNet', paradigm='layer'))
# The backbone's learning rate, 0.1 of the base's, is the base config's own.
default_hooks = dict(
    checkpoint=dict(type='laud_mm.AtomicCheckpointHook'),
    activation=dict(type='laud_mm.ActivationHook', target=0.5),
    latency=dict(type='laud_mm.LatencyHook', devices=['V100', 'TX2']))
