# Faster R-CNN, FPN, LAUD-ResNet-50 with layer skipping at t = 0.5; COCO, 12 epochs.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

model = dict(backbone=dict(type='laud_mm.LAUDResNet', paradigm='layer'))

optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.5)}))
default_hooks = dict(checkpoint=dict(type='laud_mm.AtomicCheckpointHook'))
custom_hooks = [
    # Temperature 0.1 for maskers from an ImageNet LAUDNet checkpoint, falling for fresh ones.
    dict(type='laud_mm.ActivationHook', target=0.5, weight=10.0, bounds=False,
         temperature=dict(type='auto', start=5.0, end=0.1)),
    dict(type='laud_mm.LatencyHook', devices=['V100', 'TX2']),
]
