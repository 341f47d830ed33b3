_base_ = './mask_rcnn_laud_r101.py'
model = dict(backbone=dict(paradigm='spatial', spatial_granularity=(8, 4, 7, 1)))
default_hooks = dict(activation=dict(target=0.6))
