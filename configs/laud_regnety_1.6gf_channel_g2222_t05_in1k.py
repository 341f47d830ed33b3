# LAUD-RegNetY-1.6GF, channel skipping in groups of 2 at t = 0.5.
_base_ = './laud_regnety_1.6gf_layer_t05_in1k.py'

model = dict(backbone=dict(paradigm='channel', channel_granularity=2))
