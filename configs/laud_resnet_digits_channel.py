# Channel skipping in groups of 2 on the digits at t = 0.6.
_base_ = './laud_resnet_digits.py'

model = dict(backbone=dict(paradigm='channel', channel_granularity=2))
