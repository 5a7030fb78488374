"""erniebot's two image interfaces against a server: URL of the server, access token. Prints JSON."""

import json
import sys

import erniebot
import requests
from erniebot.resources.image import ImageV1

base, token = sys.argv[1:]
erniebot.api_type = "yinian"
erniebot.access_token = token
found = {}
for name, url in {"path": base + "/rpc/2.0/ernievilg/v1", "host": base}.items():
    erniebot.api_base_url = url
    drawn = erniebot.Image.create(model="ernie-vilg-v2", prompt="三只企鹅", width=1024, height=1536, image_num=2)
    found[name] = [len(requests.get(each).content) for each in drawn.get_result()]
first = ImageV1.create(text="三只企鹅", resolution="1024*1024", style="油画", num=1)
found["v1"] = [each["image"] for each in first.data["imgUrls"]]
for name, call in {
    "failed": lambda: ImageV1.create(text="不许画的", resolution="1024*1024", style="油画"),
    "failed v2": lambda: erniebot.Image.create(model="ernie-vilg-v2", prompt="不许画的", width=512, height=512),
    "style": lambda: ImageV1.create(text="三只企鹅", resolution="1024*1024", style="没有"),
    "long": lambda: erniebot.Image.create(model="ernie-vilg-v2", prompt="猫" * 201, width=512, height=512),
}.items():
    try:
        found[name] = call().to_dict()
    except erniebot.errors.EBError as error:
        found[name] = [type(error).__name__, str(error)]
erniebot.access_token = "wrong"
try:
    ImageV1.create(text="三只企鹅", resolution="1024*1024", style="油画")
except erniebot.errors.EBError as error:
    found["token"] = [type(error).__name__, str(error)]
print(json.dumps(found, ensure_ascii=False, default=str))
