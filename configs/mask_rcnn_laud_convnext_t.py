# Mask R-CNN, FPN, LAUD-ConvNeXt-T with layer skipping at t = 0.5; COCO, 12 epochs.
_base_ = './mask_rcnn_laud_r50.py'

model = dict(
    backbone=dict(
        _delete_=True, type='laud_mm.LAUDConvNeXt', arch='tiny', paradigm='layer',
        out_indices=(0, 1, 2, 3), gap_before_final_norm=False, drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://convnext_tiny')),
    neck=dict(in_channels=[96, 192, 384, 768]))
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05))
