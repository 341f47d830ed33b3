# The static net on scikit-learn's digits (tools/run_digits.py writes them): the others' teacher.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

model = dict(
    backbone=dict(type='laud_mm.LAUDResNet', base_channels=16, paradigm=None),
    head=dict(num_classes=10, in_channels=512, topk=(1, )))

data_root = 'data/digits'
dataset_type = 'CustomDataset'
data_preprocessor = dict(num_classes=10)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Rotate', angle=12.0, prob=0.5),
    dict(type='RandomCrop', crop_size=48, padding=4),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=64, **loader,
    dataset=dict(_delete_=True, type=dataset_type, data_root=data_root, data_prefix='train',
                 pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=64, **loader,
    dataset=dict(_delete_=True, type=dataset_type, data_root=data_root, data_prefix='val',
                 pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1, ))
test_evaluator = val_evaluator

max_epochs = 60
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=0.05, nesterov=True, weight_decay=5e-5))
param_scheduler = dict(_delete_=True, type='CosineAnnealingLR', T_max=max_epochs,
                       convert_to_iter_based=True)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(type='laud_mm.AtomicCheckpointHook', max_keep_ckpts=2),
    latency=dict(type='laud_mm.LatencyHook', interval=0, devices=['V100', 'TX2']))
randomness = dict(seed=0)
