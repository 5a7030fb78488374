"""webuiapi against a server: host, port, AK, SK, a picture. Prints JSON."""

import json
import sys

import webuiapi
from PIL import Image, ImageChops

host, port, ak, sk, picture = sys.argv[1:]
api = webuiapi.WebUIApi(host=host, port=int(port), username=ak, password=sk)
found = {}
drawn = api.txt2img(prompt="三只企鹅", styles=["水彩"], seed=7, batch_size=2)
found["sizes"] = [image.size for image in drawn.images]
found["info"] = drawn.info
found["infotexts"] = len(drawn.info["infotexts"])
found["png info"] = api.png_info(drawn.image).info
image = Image.open(picture).convert("RGB")
mask = Image.new("L", image.size, 0)
mask.paste(255, (0, 0, image.width // 2, image.height))
painted = api.img2img(images=[image], mask_image=mask, prompt="三只企鹅", seed=1, denoising_strength=1.0)
found["painted"] = painted.image.size
right = (image.width // 2, 0, image.width, image.height)
found["kept"] = ImageChops.difference(painted.image.convert("RGB").crop(right), image.crop(right)).getbbox() is None
settings = {"images": [image], "mask_image": mask, "prompt": "三只企鹅", "denoising_strength": 1.0}
inverted = api.img2img(inpainting_mask_invert=1, **settings)
left = (0, 0, image.width // 2, image.height)
found["inverted"] = ImageChops.difference(inverted.image.convert("RGB").crop(left), image.crop(left)).getbbox() is None
options = api.get_options()
api.set_options(options)
api.util_set_model("tiny")
found["model"], found["names"] = api.util_get_current_model(), api.util_get_model_names()
found["samplers"], found["schedulers"] = api.util_get_sampler_names(), api.util_get_scheduler_names()
found["styles"] = [each["name"] for each in api.get_prompt_styles()]
found["progress"] = api.get_progress()["progress"]
found["lists"] = [api.get_upscalers(), api.get_loras(), api.get_sd_vae(), api.get_latent_upscale_modes()]
found["scripts"], found["embeddings"] = api.get_scripts(), api.get_embeddings()
found["interrupt"] = api.interrupt()
try:
    api.txt2img(prompt="不许画的")
except RuntimeError as error:
    found["failed"] = [error.args[0], json.loads(error.args[1])["detail"]]
print(json.dumps(found, ensure_ascii=False))
