# The demo set (tools/make_demo_data.py data/demo: 160x160 images, 6 classes) and a short
# training on it. A demo config merges them over what its detector has for COCO:
#     globals().update(_base_.pop('on_demo_set'))
# In a function, because top-level names would clash with those of the detector's config.


def settings(root, max_epochs):
    data = dict(data_root=root, metainfo=dict(
        classes=('cat', 'coin', 'cup', 'flower', 'ring', 'star')))
    load = dict(type='LoadImageFromFile')
    # Masks are loaded for all: detectors of boxes leave them alone.
    annotations = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
    val_dataloader = dict(num_workers=1, dataset=dict(
        ann_file='annotations/instances_val.json', data_prefix=dict(img='val/'),
        pipeline=[
            load, dict(type='Resize', scale=(160, 160), keep_ratio=True), annotations,
            dict(type='PackDetInputs', meta_keys=(
                'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))], **data))
    evaluator = dict(ann_file=root + 'annotations/instances_val.json')
    return dict(
        train_dataloader=dict(batch_size=4, num_workers=1, dataset=dict(
            ann_file='annotations/instances_train.json', data_prefix=dict(img='train/'),
            pipeline=[load, annotations, dict(type='RandomFlip', prob=0.5),
                      dict(type='PackDetInputs')], **data)),
        val_dataloader=val_dataloader, test_dataloader=val_dataloader,
        val_evaluator=evaluator, test_evaluator=evaluator,
        train_cfg=dict(max_epochs=max_epochs, val_interval=max_epochs // 2),
        optim_wrapper=dict(
            optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.05),
            clip_grad=dict(max_norm=10),
            paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0)))),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
            dict(type='CosineAnnealingLR', T_max=max_epochs, convert_to_iter_based=True)],
        default_hooks=dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2)))


on_demo_set = settings('data/demo/', max_epochs=6)
