# LAUD-ResNet-50, layer skipping at t = 0.5: every block decides by itself, as in ConvNet-AIG and
# SkipNet. ImageNet, 100 epochs from torchvision's weights (the papers' recipe), 8 GPUs.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

model = dict(
    type='laud_mm.DistillationClassifier',
    teacher=dict(checkpoint='torchvision://resnet50'),  # the student starts from it too
    loss_kd=dict(weight=0.5, temperature=4.0),
    backbone=dict(type='laud_mm.LAUDResNet', paradigm='layer'))

train_dataloader = dict(batch_size=128)
auto_scale_lr = dict(base_batch_size=1024)
optim_wrapper = dict(
    optimizer=dict(lr=0.01 * 1024 / 128, nesterov=True, weight_decay=5e-5),
    paramwise_cfg=dict(custom_keys={'masker': dict(lr_mult=1.0), 'head.': dict(lr_mult=1.0)}))
param_scheduler = dict(
    _delete_=True, type='CosineAnnealingLR', T_max=100, convert_to_iter_based=True)

default_hooks = dict(
    activation=dict(type='laud_mm.ActivationHook', target=0.5, weight=10.0, bounds=True,
                    temperature=dict(type='exponential', start=5.0, end=0.1)),
    latency=dict(type='laud_mm.LatencyHook', interval=20, devices=['V100', 'TX2']),
    checkpoint=dict(type='laud_mm.AtomicCheckpointHook', max_keep_ckpts=3))
