_base_ = './mask_rcnn_laud_convnext_t.py'
model = dict(backbone=dict(paradigm='spatial', spatial_granularity=(4, 4, 2, 1)))
default_hooks = dict(activation=dict(target=0.6))
