"""timm: at least one small network of every module of the library."""

from __future__ import annotations

import functools
from typing import Any

import torch
from case import Built, Case
from torchvision_models import provide_operators

ANY_SIZE: dict[int, str] = {
    64: """
        mobilenetv3_small_050 mobilenetv3_small_100 mobilenetv3_large_100 lcnet_050 fbnetv3_b
        mobilenetv4_conv_small mobilenetv4_conv_medium mobilenetv4_hybrid_medium
        efficientnet_b0 efficientnet_es efficientnet_lite0 efficientnetv2_rw_t efficientnet_b0_gn efficientnet_cc_b0_4e
        mnasnet_050 mobilenetv1_100 mobilenetv2_050 mobilenet_edgetpu_v2_xs fbnetc_100 spnasnet_100 semnasnet_100
        mixnet_s tinynet_e tf_efficientnet_b0 tf_efficientnetv2_b0 tf_mobilenetv3_small_minimal_100 hardcorenas_a
        resnet10t resnet18 resnet26d resnet50_gn ecaresnet26t seresnet18 resnext26ts ecaresnext26t_32x4d skresnet18
        resnetblur18 resnetaa50 resnetrs50 seresnext26d_32x4d gcresnet33ts gcresnext26ts
        resnetv2_18 resnetv2_50x1_bit resnetv2_50d_evos resnetv2_50d_frn resnetv2_50
        legacy_seresnet18 legacy_seresnext26_32x4d legacy_xception
        res2net50_26w_4s res2net50d res2next50 resnest14d resnest50d_4s2x40d
        regnetx_002 regnety_002 regnetz_005 regnetv_040 regnetz_b16 regnetz_c16_evos
        densenet121 densenetblur121d dla34 dla46x_c dla60_res2net dpn48b dpn68b
        vgg11 vgg11_bn vovnet39a ese_vovnet19b_dw eca_vovnet39b ese_vovnet39b_evos
        ghostnet_050 ghostnetv2_100 ghostnetv3_050 repghostnet_050 repvit_m0_9 repvgg_a0 mobileone_s0 gernet_s
        hrnet_w18_small hgnet_tiny hgnetv2_b0 selecsls42 tresnet_m
        nfnet_l0 eca_nfnet_l0 nf_resnet26 nf_regnet_b0 dm_nfnet_f0 nf_ecaresnet26
        convnext_atto convnext_atto_ols convnext_atto_rms convnext_zepto_rms convnextv2_atto convnext_tiny_hnf
        inception_next_atto convmixer_768_32 rexnet_100 rexnetr_100 csatv2
        cspresnet50 cspresnext50 cspdarknet53 darknet17 darknetaa53 sedarknet21 cs3darknet_focus_s cs3darknet_s
        cs3sedarknet_l cspnext_tiny edgenext_xx_small
        fasternet_t0 starnet_s050 lcnetv2_small mambaout_femto
        poolformer_s12 poolformerv2_s12 convformer_s18 caformer_s18 lowformer_b0 iformer_t cpubone_nano
        efficientvit_b0 efficientvit_l1 mobilevit_xxs mobilevitv2_050 nextvit_small rdnet_tiny pvt_v2_b0 pvt_v2_b2_li
        lambda_resnet26t
        """,
    96: "xception41 xception41p test_byobnet test_resnet test_efficientnet test_convnext",
    128: """
        inception_v3 inception_v4 inception_resnet_v2 nasnetalarge pnasnet5large xcit_nano_12_p16_224
        xcit_nano_12_p8_224 twins_svt_small twins_pcpvt_small
        focalnet_tiny_srf focalnet_tiny_lrf davit_tiny
        """,
    224: "haloregnetz_b fastvit_t8 fastvit_sa12 fastvit_mci0 shvit_s1 swiftformer_xs",
    256: "mobilenetv5_300m efficientvim_m1 halonet26t bat_resnext26ts lamhalobotnet50ts_256",
}
"""Side of the input -> convolutional networks, which take any."""

IMAGE_SIZE: dict[int, str] = {
    32: "test_vit test_vit2 test_vit3 test_vit4",
    64: """
        vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_small_patch32_224 vit_base_r26_s32_224
        vit_relpos_small_patch16_224
        vit_srelpos_small_patch16_224 vit_medium_patch16_gap_256 vit_small_patch16_dinov3 vit_small_patch14_reg4_dinov2
        vit_base_patch16_rope_224 vit_little_patch16_reg1_gap_256 vit_base_patch16_siglip_224 vit_base_patch16_clip_224
        vit_xsmall_patch16_clip_224 vit_base_patch16_xp_224 flexivit_small
        deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224 beit_base_patch16_224
        beitv2_base_patch16_224 beit3_base_patch16_224 eva02_tiny_patch14_224 eva02_base_patch16_clip_224
        cait_xxs24_224 convit_tiny mixer_s32_224 mixer_s16_224 resmlp_12_224 gmixer_12_224 gmlp_ti16_224 volo_d1_224
        tnt_s_patch16_224 visformer_tiny vitamin_small_224 samvit_base_patch16_224
        swin_tiny_patch4_window7_224 swin_s3_tiny_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 swinv2_cr_tiny_ns_224
        aimv2_large_patch14_224
        """,
    128: """
        pit_ti_224 pit_ti_distilled_224 coat_lite_tiny coat_tiny mvitv2_tiny sequencer2d_s maxvit_pico_rw_256
        maxvit_rmlp_pico_rw_256 maxxvit_rmlp_nano_rw_256 coatnet_pico_rw_224 coatnet_nano_rw_224 coatnet_0_224
        coatnet_rmlp_nano_rw_224 coatnext_nano_rw_224 maxvit_tiny_tf_224 hiera_tiny_224
        nest_tiny naflexvit_base_patch16_gap
        qwen3_vit_88m gemma4_vit_167m
        """,
    112: "deepseek_vit_412m",
}
"""`img_size=` -> networks that are built for one size."""

OWN_SIZE: dict[int, str] = {
    224: """
        crossvit_tiny_240 crossvit_9_dagger_240 efficientformer_l1 efficientformerv2_s0 efficientvit_m0 levit_128s
        levit_conv_128s gcvit_xxtiny tiny_vit_5m_224 hieradet_small sam2_hiera_tiny
        """,
    256: "botnet26t_256 eca_botnext26ts_256 sehalonet33ts lambda_resnet26rpt_256",
}
"""Networks that take only the size they were written for."""

FIXED_INPUT = {"crossvit_tiny_240": 240, "crossvit_9_dagger_240": 240}


def cases() -> list[Case]:
    """All cases; raises ImportError where timm is absent."""
    provide_operators()
    import timm  # pyright: ignore[reportMissingImports]

    known = set(timm.list_models())
    sized = (
        (name, size, False) for table in (ANY_SIZE, OWN_SIZE) for size, names in table.items() for name in names.split()
    )
    resized = ((name, size, True) for size, names in IMAGE_SIZE.items() for name in names.split())
    return [
        Case("timm", name, functools.partial(_build, name, FIXED_INPUT.get(name, size), given))
        for name, size, given in (*sized, *resized)
        if name in known
    ]


def _build(name: str, size: int, given: bool) -> Built:
    import timm  # pyright: ignore[reportMissingImports]

    extra: dict[str, Any] = {"img_size": size} if given else {}
    model = timm.create_model(name, pretrained=False, num_classes=10, **extra)
    return model.eval(), torch.randn(2, 3, size, size)
