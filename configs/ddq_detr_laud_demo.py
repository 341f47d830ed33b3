# A small-width DDQ-DETR with layer skipping at t = 0.5, from scratch on the demo set.
_base_ = ['./ddq_detr_laud_r50.py', './_base_/demo_set.py']
globals().update(_base_.pop('on_demo_set'))

embed, ffn = dict(embed_dims=64), dict(embed_dims=64, feedforward_channels=128)
model = dict(
    num_queries=50,
    backbone=dict(base_channels=16, frozen_stages=-1, init_cfg=None, norm_eval=False,
                  norm_cfg=dict(requires_grad=True)),
    neck=dict(in_channels=[128, 256, 512], out_channels=64, norm_cfg=dict(num_groups=8)),
    encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=embed, ffn_cfg=ffn)),
    decoder=dict(num_layers=2, layer_cfg=dict(
        self_attn_cfg=embed, cross_attn_cfg=embed, ffn_cfg=ffn)),
    positional_encoding=dict(num_feats=32),
    bbox_head=dict(num_classes=6, embed_dims=64),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=20)),
    test_cfg=dict(max_per_img=50))
