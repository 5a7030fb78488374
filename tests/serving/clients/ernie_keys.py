"""erniebot with AK and SK, whose token comes from a host that is written into it: through the proxy. Prints JSON."""

import json
import sys

import erniebot
import requests

ak, sk = sys.argv[1:]
erniebot.api_type = "yinian"
erniebot.ak, erniebot.sk = ak, sk
drawn = erniebot.Image.create(model="ernie-vilg-v2", prompt="三只企鹅", width=1024, height=1024)
urls = drawn.get_result()
print(json.dumps({"urls": urls, "bytes": [len(requests.get(url).content) for url in urls]}))
