"""What the golden networks were trained with, as flags of their programs."""

from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden/data"
ADM = "--image_size 16 --num_head_channels"
GLIDE = "--image_size 16 --num_head_channels 16 --xf_heads 4 --noise_schedule cosine"
UPSAMPLER = "--large_size 16 --small_size 8 --num_head_channels 32"
FLAGS = {
    "adm_unet_updown_adagn_classcond": f"{ADM} 16 --noise_schedule cosine --learn_sigma True",
    "adm_unet_new_attention_order_conv_resample": (
        "--image_size 16 --num_heads 4 --use_new_attention_order True"
    ),
    "adm_superres_unet": UPSAMPLER,
    "adm_classifier_attention_pool": "--image_size 16 --classifier_head_channels 16",
    "glide_text2im_unet": GLIDE,
    "glide_superres_unet": f"{GLIDE} --super_res True",
    "glide_inpaint_unet": f"{GLIDE} --inpaint True",
}
