"""The demo's small HRNet: `mmcv_stub.install()`, then `mmpose.apis.init_model(this_file, None, "cpu")`."""

codec = dict(
    type="UDPHeatmap",
    input_size=(96, 128),
    heatmap_size=(24, 32),
    sigma=1.5,
    blur_kernel_size=5,
)

model = dict(
    type="TopdownPoseEstimator",
    data_preprocessor=dict(
        type="PoseDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type="HRNet",
        in_channels=3,
        extra=dict(
            stage1=dict(
                num_modules=1, num_branches=1, block="BOTTLENECK", num_blocks=(2,), num_channels=(32,)
            ),
            stage2=dict(
                num_modules=1, num_branches=2, block="BASIC", num_blocks=(2, 2), num_channels=(16, 32)
            ),
            stage3=dict(
                num_modules=2, num_branches=3, block="BASIC", num_blocks=(2, 2, 2), num_channels=(16, 32, 64)
            ),
            stage4=dict(
                num_modules=1,
                num_branches=4,
                block="BASIC",
                num_blocks=(2, 2, 2, 2),
                num_channels=(16, 32, 64, 128),
            ),
        ),
    ),
    head=dict(
        type="HeatmapHead",
        in_channels=16,
        out_channels=17,
        deconv_out_channels=None,
        loss=dict(type="KeypointMSELoss", use_target_weight=True),
        decoder=codec,
    ),
    # UDP aligns the flipped heatmap with the original, so nothing is shifted.
    test_cfg=dict(flip_test=True, flip_mode="heatmap", shift_heatmap=False),
)

_pipeline = [
    dict(type="LoadImage"),
    dict(type="GetBBoxCenterScale", padding=1.25),
    dict(type="TopdownAffine", input_size=codec["input_size"], use_udp=True),
    dict(type="PackPoseInputs"),
]
test_dataloader = dict(dataset=dict(type="CocoDataset", data_mode="topdown", pipeline=_pipeline))
train_dataloader = test_dataloader
