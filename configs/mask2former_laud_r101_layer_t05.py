_base_ = './mask2former_laud_r101.py'
model = dict(backbone=dict(paradigm='layer'))
default_hooks = dict(activation=dict(target=0.5))
