"""qianfan's Text2Image against a server: URL of the server, AK, SK. Prints JSON."""

import json
import os
import sys

os.environ["QIANFAN_BASE_URL"], os.environ["QIANFAN_AK"], os.environ["QIANFAN_SK"] = sys.argv[1:]
os.environ["QIANFAN_DISABLE_EB_SDK"] = "true"
import qianfan  # noqa: E402

client = qianfan.Text2Image()
found = {}
drawn = client.do(prompt="三只企鹅", with_decode="base64", n=2, size="768x1024", seed=7, steps=4, sampler_index="DDIM")
found["pictures"] = [each["image"][:4].hex() for each in drawn["body"]["data"]]
for name, values in {"failed": {"prompt": "不许画的"}, "style": {"prompt": "猫", "style": "没有的"}}.items():
    try:
        client.do(**values)
    except qianfan.errors.APIError as error:
        found[name] = [error.error_code, error.error_msg]
print(json.dumps(found, ensure_ascii=False))
