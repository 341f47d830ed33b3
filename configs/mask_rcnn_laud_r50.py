# Mask R-CNN, FPN, LAUD-ResNet-50 with layer skipping at t = 0.5; COCO, 12 epochs.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'

model = dict(backbone=dict(type='laud_mm.LAUDResNet', paradigm='layer'))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.5))))
default_hooks = dict(
    checkpoint=dict(type='laud_mm.AtomicCheckpointHook'),
    activation=dict(type='laud_mm.ActivationHook', target=0.5),
    latency=dict(type='laud_mm.LatencyHook', devices=['V100', 'TX2']))
