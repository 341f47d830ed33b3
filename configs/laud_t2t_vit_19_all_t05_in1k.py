# LAUD-T2T-ViT-19, tokens, heads and layers together at t = 0.5, in AdaViT's way. Its setup here
# (150 epochs, AdamW, batch 512, temperature 5) is not verified against the authors'.
_base_ = 'mmpretrain::t2t_vit/t2t-vit-t-19_8xb64_in1k.py'

model = dict(
    type='laud_mm.DistillationClassifier',
    # tools/convert_checkpoint.py --source t2t_vit of the published weights, prefixed 'backbone.'
    teacher=dict(checkpoint='checkpoints/t2t_vit_19.pth'),
    loss_kd=dict(weight=0.5, temperature=4.0),
    backbone=dict(_delete_=True, type='laud_mm.LAUDT2TViT', arch='t2t_vit_19',
                  paradigm=('token', 'head', 'layer')))

optim_wrapper = dict(paramwise_cfg=dict(custom_keys={
    'masker': dict(lr_mult=1.0), 'head.layers': dict(lr_mult=1.0)}))
param_scheduler = dict(
    _delete_=True, type='CosineAnnealingLR', T_max=150, eta_min=1e-5, convert_to_iter_based=True)
train_cfg = dict(max_epochs=150)
custom_hooks = []  # no moving average

default_hooks = dict(
    activation=dict(
        type='laud_mm.ActivationHook', temperature=dict(type='fixed', end=5.0),
        loss=dict(type='laud_mm.AdaViTLoss', token_target=0.5, head_target=0.5, layer_target=0.5)),
    latency=dict(type='laud_mm.LatencyHook', interval=20, devices=['V100']),
    checkpoint=dict(type='laud_mm.AtomicCheckpointHook', max_keep_ckpts=3))
