# LAUD-T2T-ViT-14, tokens, heads and layers together at t = 0.5.
_base_ = './laud_t2t_vit_19_all_t05_in1k.py'

model = dict(
    teacher=dict(checkpoint='checkpoints/t2t_vit_14.pth'),
    backbone=dict(arch='t2t_vit_14'),
    head=dict(in_channels=384))

# Weight decay as in mmpretrain's config of T2T-ViT-t-14.
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
