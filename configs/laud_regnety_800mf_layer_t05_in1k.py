# LAUD-RegNetY-800MF, layer skipping at t = 0.5.
_base_ = './laud_regnety_400mf_layer_t05_in1k.py'

model = dict(
    teacher=dict(checkpoint='torchvision://regnet_y_800mf'),
    backbone=dict(arch='regnety_800mf'),
    head=dict(in_channels=784))
