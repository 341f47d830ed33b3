_base_ = './retinanet_laud_r50.py'
model = dict(backbone=dict(paradigm='channel', channel_granularity=(2, 2, 2, 2)))
default_hooks = dict(activation=dict(target=0.8))
