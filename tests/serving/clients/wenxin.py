"""wenxin-api's three classes against a server: URL of the server, AK, SK, a picture. Prints JSON."""

import json
import sys
import time

import requests
import wenxin_api
import wenxin_api.variable as variable
from wenxin_api.error import APIError, AuthenticationError
from wenxin_api.tasks.text_to_image import TextToImage, TextToImageConsole, TextToImageRef

url, ak, sk, picture = sys.argv[1:]
for name in ("ACCESS_TOKEN_URL", "VILG_CREATE_URL", "VILG_RETRIEVE_URL"):
    for end in ("", "_CONSOLE"):
        path = getattr(variable, name + end).split(".com", 1)[1]
        setattr(variable, name + end, url + path)
wenxin_api.ak, wenxin_api.sk = ak, sk
found = {"sleep": variable.REQUEST_SLEEP_TIME}
start = time.time()
drawn = TextToImage.create(text="三只企鹅", style="水彩", num=2)
found["seconds"] = time.time() - start
found["pictures"] = [len(requests.get(each).content) for each in drawn["imgUrls"]]
settings = {"num": 1, "resolution": "1024*1536"}
found["reference"] = TextToImageRef.create(text="三只企鹅", style="油画", ref_img=picture, **settings)
found["console"] = TextToImageConsole.create(text="三只企鹅", style="", num=1)
for name, call in {
    "style": lambda: TextToImage.create(text="三只企鹅", style="没有的风格"),
    "empty": lambda: TextToImage.create(text="", style=""),
}.items():
    try:
        found[name] = call()
    except APIError as error:
        found[name] = json.loads(str(error))
found["failed"] = TextToImage.create(text="不许画的", style="", num=1)
found["failed console"] = TextToImageConsole.create(text="不许画的", style="", num=1)
wenxin_api.sk = "wrong"
try:
    TextToImage.create(text="三只企鹅", style="")
except AuthenticationError as error:
    found["wrong key"] = str(error)
print(json.dumps(found, ensure_ascii=False))
