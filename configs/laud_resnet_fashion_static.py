# The static net on Fashion-MNIST (tools/run_fashion.py writes its files): the others' teacher.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

model = dict(
    backbone=dict(type='laud_mm.LAUDResNet', in_channels=1, base_channels=16, deep_stem=True,
                  paradigm=None),
    head=dict(num_classes=10, in_channels=512, topk=(1, )))

data_root = 'data/fashion_mnist'
dataset_type = 'FashionMNIST'
data_preprocessor = dict(num_classes=10, mean=[73.0], std=[90.0], to_rgb=False)
image_size = 32
train_pipeline = [
    dict(type='Resize', scale=image_size),
    dict(type='RandomCrop', crop_size=image_size, padding=3),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='Resize', scale=image_size), dict(type='PackInputs')]
loader = dict(num_workers=0, persistent_workers=False)
# The first 55,000 of the 60,000 training images train, the last 5,000 validate.
train_dataloader = dict(
    batch_size=128, **loader,
    dataset=dict(_delete_=True, type=dataset_type, data_root=data_root, download=False,
                 indices=55000, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=100, **loader,
    dataset=dict(_delete_=True, type=dataset_type, data_root=data_root, download=False,
                 indices=-5000, pipeline=test_pipeline))
# The 10,000 test images are for a net that is finished.
test_dataloader = dict(
    batch_size=100, **loader,
    dataset=dict(_delete_=True, type=dataset_type, data_root=data_root, download=False,
                 split='test', test_mode=True, pipeline=test_pipeline))
val_evaluator = dict(topk=(1, ))
test_evaluator = val_evaluator

max_epochs = 10
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=0.1, nesterov=True, weight_decay=5e-4))
param_scheduler = dict(_delete_=True, type='CosineAnnealingLR', T_max=max_epochs,
                       convert_to_iter_based=True)
default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(type='laud_mm.AtomicCheckpointHook', max_keep_ckpts=2),
    latency=dict(type='laud_mm.LatencyHook', interval=0, devices=['V100', 'TX2']))
custom_hooks = [dict(type='laud_mm.ChannelsLastHook')]  # a third faster on a CPU
randomness = dict(seed=0)
