# A small-width Mask R-CNN with layer skipping at t = 0.5, from scratch on the demo set.
_base_ = ['./mask_rcnn_laud_r50.py', './_base_/demo_set.py']
globals().update(_base_.pop('on_demo_set'))

roi_extractor = dict(out_channels=64, roi_layer=dict(sampling_ratio=2, use_torchvision=True))
model = dict(
    backbone=dict(base_channels=16, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=roi_extractor, mask_roi_extractor=roi_extractor,
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=6),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2, num_classes=6)),
    train_cfg=dict(rcnn=dict(sampler=dict(num=64)),
                   rpn_proposal=dict(nms_pre=500, max_per_img=300)),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=30)))
