_base_ = './ddq_detr_laud_r50.py'
model = dict(backbone=dict(paradigm='layer'))
default_hooks = dict(activation=dict(target=0.5))
