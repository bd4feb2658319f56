"""The package's own components, one line each: kind, name, target, family, summary. Adding one is a file and a line."""

from __future__ import annotations

CATALOGUE: tuple[tuple[str, str, str, str, str], ...] = (
    # datasets
    ("dataset", "samples", "datasets.samples:Samples", "built in", "photographs from scikit-image and scikit-learn"),
    ("dataset", "deadleaves", "datasets.deadleaves:DeadLeaves", "procedural", "natural-statistics images, unlimited"),
    ("dataset", "folder", "datasets.folder:Folder", "files", "any tree of images"),
    # methods
    ("method", "dwt-dct", "bench.methods.dwt:DwtDct", "post-hoc watermark", "invisible-watermark's dwtDct, batched"),
    ("method", "dwt-dct-svd", "bench.methods.dwt:DwtDctSvd", "post-hoc watermark", "its dwtDctSvd, batched"),
    ("method", "rivagan", "bench.methods.rivagan:RivaGan", "post-hoc watermark", "RivaGAN through ONNX, 32 bits"),
    ("method", "hidden", "bench.methods.hidden.method:Hidden", "post-hoc watermark", "HiDDeN, 48 bits, trained here"),
    (
        "method",
        "stable-signature",
        "bench.methods.stable_signature.method:StableSignature",
        "in-generation watermark",
        "Stable Signature, a decoder for each user",
    ),
    (
        "method",
        "folder-marked",
        "bench.methods.folder_marked:FolderMarked",
        "bring your own",
        "marked files or program",
    ),
    # attacks
    ("attack", "identity", "attacks.chain:Identity", "none", "no attack"),
    ("attack", "chain", "attacks.chain:Chain", "combined", "any attacks one after another"),
    ("attack", "combined", "attacks.chain:Combined", "combined", "crop .5, brightness 1.5, JPEG 80"),
    ("attack", "jpeg", "attacks.codec:Jpeg", "compression", "JPEG, real codec"),
    ("attack", "webp", "attacks.codec:WebP", "compression", "WebP, real codec"),
    ("attack", "crop", "attacks.geometry:Crop", "geometric", "crop, resized back or not"),
    ("attack", "resize", "attacks.geometry:Resize", "geometric", "resize and back"),
    ("attack", "rotation", "attacks.geometry:Rotation", "geometric", "rotation"),
    ("attack", "flip", "attacks.geometry:Flip", "geometric", "mirror"),
    ("attack", "brightness", "attacks.photometric:Brightness", "photometric", "multiply all values"),
    ("attack", "contrast", "attacks.photometric:Contrast", "photometric", "blend with the mean grey"),
    ("attack", "saturation", "attacks.photometric:Saturation", "photometric", "blend with grey"),
    ("attack", "hue", "attacks.photometric:Hue", "photometric", "turn the colour circle"),
    ("attack", "sharpness", "attacks.photometric:Sharpness", "photometric", "blend with a smoothed image"),
    ("attack", "gamma", "attacks.photometric:Gamma", "photometric", "power law"),
    ("attack", "gaussian-blur", "attacks.degradation:GaussianBlur", "degradation", "Gaussian blur"),
    ("attack", "median-blur", "attacks.degradation:MedianBlur", "degradation", "median filter"),
    ("attack", "gaussian-noise", "attacks.degradation:GaussianNoise", "degradation", "additive Gaussian noise"),
    ("attack", "salt-and-pepper", "attacks.degradation:SaltAndPepper", "degradation", "black and white pixels"),
    ("attack", "erase", "attacks.overlay:Erase", "overlay", "one black rectangle"),
    ("attack", "text", "attacks.overlay:Text", "overlay", "text drawn over the image"),
    # metrics
    ("metric", "psnr", "bench.metrics:Psnr", "pixelwise", "peak signal-to-noise ratio, dB"),
    ("metric", "ssim", "bench.metrics:Ssim", "pixelwise", "structural similarity"),
    ("metric", "lpips", "bench.metrics:Lpips", "perceptual", "LPIPS, where its weights are present"),
)
