"""Verify an exported .onnx file without resnetkit: python verify_artefact.py model.onnx."""

import io
import json
import sys
from base64 import b64decode
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def decode(file, channels, black=0, white=65535):  # bytes -> (H, W, channels) uint8, upright
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(b64decode(file))))
    if image.mode.startswith("I;16"):  # 16-bit gray: the full range keeps its upper 8 bits
        gray = np.asarray(image, np.float64).clip(black, white)
        full = (black, white) == (0, 65535)
        gray = gray // 256 if full else ((gray - black) * (255 / (white - black))).round()
        image = Image.fromarray(gray.astype(np.uint8))
    if image.has_transparency_data and channels != 4:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.atleast_3d(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))


def compare(stage, found, expected, limit, share=1, most=np.inf):
    difference = np.abs(found - np.float64(expected)) if len(found) == len(expected) else np.inf
    agrees = np.mean(difference <= limit) >= share and np.max(difference) <= most
    largest, wrong = results.get(stage, (0, []))
    results[stage] = (max(largest, np.max(difference)), wrong if agrees else [*wrong, name])


model, results = Path(sys.argv[1]).read_bytes(), {}
entries = onnxruntime.InferenceSession(model).get_modelmeta().custom_metadata_map
manifest, golden = (json.loads(entries[key]) for key in ("resnetkit", "resnetkit.golden"))
preset, limits, classes = (manifest[k] for k in ("preprocessing", "tolerances", "classes"))
levels = (limits["levels"], limits["level_share"], limits["most_levels"])
scale = preset["value_range"] if isinstance(preset.get("value_range"), list) else ()
outputs = [manifest["stages"]["cropped"], "probabilities"]
shown = outputs[0].encode()
for tag in (0x0A, 0x62, 0x3A):  # field tags: an output's name, the graph's output, the graph
    shown = bytes([tag, len(shown)]) + shown
session = onnxruntime.InferenceSession(model + shown)
for image in golden["images"]:
    name, decoded = image["name"], image["decoded"]
    pixels = decode(image["file"], decoded["shape"][2], *scale)
    crop = decode(image["crop"], len(preset["mean"]))
    kept = np.arange(min(pixels.size, 4096)) * pixels.size // min(pixels.size, 4096)
    compare("shape", pixels.shape, decoded["shape"], 0)
    compare("decoded", pixels.ravel()[kept], list(b64decode(decoded["sample"])), *levels)
    batch = (pixels if manifest["entrance"] == "image" else crop)[None]
    found, shares = session.run(outputs, {manifest["entrance"]: batch})
    compare("cropped", found[0].transpose(1, 2, 0).ravel(), crop.ravel(), *levels)
    expected = np.frombuffer(b64decode(image["probabilities"]), "<f4")
    compare("probabilities", shares[0], expected, limits["probability"])
    compare("class", [classes[shares.argmax()] != image["class"]], [0], image["near_tie"])
for stage, (largest, wrong) in results.items():
    print(f"{stage:<15}{largest:>12.6g}   {'differs: ' + ', '.join(wrong) if wrong else 'agrees'}")
sys.exit(not results or any(wrong for _, wrong in results.values()))
