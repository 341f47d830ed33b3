_base_ = './retinanet_laud_r50.py'
model = dict(
    backbone=dict(
        _delete_=True, type='laud_mm.LAUDRegNet', arch='regnety_400mf', paradigm='layer',
        frozen_stages=1, norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://regnet_y_400mf')),
    neck=dict(in_channels=[48, 104, 208, 440]))
