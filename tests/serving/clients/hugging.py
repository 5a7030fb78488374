"""huggingface_hub's InferenceClient against a server: URL of the server, SK, a picture. Prints JSON."""

import json
import sys

import huggingface_hub
from huggingface_hub import InferenceClient

url, sk, picture = sys.argv[1:]
client = InferenceClient(model=url + "/models/" + "tiny", token=sk)
found = {"version": huggingface_hub.__version__}
drawn = client.text_to_image("三只企鹅", height=1536, width=1024, num_inference_steps=4, guidance_scale=2.0, seed=7)
again = client.text_to_image("三只企鹅", height=1536, width=1024, num_inference_steps=4, guidance_scale=2.0, seed=7)
found["size"], found["same"] = drawn.size, drawn.tobytes() == again.tobytes()
found["from picture"] = client.image_to_image(picture, prompt="三只企鹅").size
found["from picture alone"] = client.image_to_image(picture).size
try:
    client.text_to_image("不许画的")
except Exception as error:
    found["failed"] = [type(error).__name__, str(error)]
try:
    InferenceClient(model=url, token="wrong").text_to_image("猫")
except Exception as error:
    found["key"] = [type(error).__name__, str(error)]
print(json.dumps(found, ensure_ascii=False))
