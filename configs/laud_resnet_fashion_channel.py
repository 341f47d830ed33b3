# Channel skipping in groups of 2 on Fashion-MNIST at t = 0.6.
_base_ = './laud_resnet_fashion.py'

model = dict(backbone=dict(paradigm='channel', channel_granularity=2))
