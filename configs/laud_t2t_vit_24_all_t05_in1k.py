# LAUD-T2T-ViT-24, tokens, heads and layers together at t = 0.5.
_base_ = './laud_t2t_vit_19_all_t05_in1k.py'

model = dict(
    teacher=dict(checkpoint='checkpoints/t2t_vit_24.pth'),
    backbone=dict(arch='t2t_vit_24'),
    head=dict(in_channels=512))
