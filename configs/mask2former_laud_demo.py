# A small-width Mask2Former with layer skipping at t = 0.5, from scratch on the demo set.
_base_ = ['./mask2former_laud_r50.py', './_base_/demo_set.py']
globals().update(_base_.pop('on_demo_set'))

# In iterations, as on COCO: 6 epochs of the demo set.
train_cfg = dict(max_iters=600, val_interval=300, dynamic_intervals=None)
param_scheduler[1] = dict(type='CosineAnnealingLR', T_max=600, by_epoch=False)
default_hooks['checkpoint']['interval'] = 300
embed, ffn = dict(embed_dims=64), dict(embed_dims=64, feedforward_channels=128)
model = dict(
    data_preprocessor=dict(batch_augments=None),
    backbone=dict(base_channels=16, frozen_stages=-1, init_cfg=None, norm_eval=False,
                  norm_cfg=dict(requires_grad=True)),
    panoptic_head=dict(
        in_channels=[64, 128, 256, 512], feat_channels=64, out_channels=64,
        num_things_classes=6, num_queries=20,
        pixel_decoder=dict(
            norm_cfg=dict(num_groups=8),
            encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=embed, ffn_cfg=ffn)),
            positional_encoding=dict(num_feats=32)),
        positional_encoding=dict(num_feats=32),
        transformer_decoder=dict(num_layers=2, layer_cfg=dict(
            self_attn_cfg=embed, cross_attn_cfg=embed, ffn_cfg=ffn)),
        loss_cls=dict(class_weight=[1.0] * 6 + [0.1])),
    panoptic_fusion_head=dict(num_things_classes=6),
    train_cfg=dict(num_points=1024))
