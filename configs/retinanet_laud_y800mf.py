_base_ = './retinanet_laud_y400mf.py'
model = dict(
    backbone=dict(arch='regnety_800mf',
                  init_cfg=dict(checkpoint='torchvision://regnet_y_800mf')),
    neck=dict(in_channels=[64, 144, 320, 784]))
