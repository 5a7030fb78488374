"""The openai package against a server: URL of the server, SK, a picture. Prints JSON."""

import base64
import io
import json
import sys

import openai

url, sk, picture = sys.argv[1:]
client = openai.OpenAI(base_url=url + "/v1", api_key=sk)
found = {"models": [each.id for each in client.models.list()]}


def size(content):
    assert content[:4] == b"\x89PNG", content[:20]
    return [int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")]


drawn = client.images.generate(model="gpt-image-1", prompt="三只企鹅", n=2, size="1024x1536", extra_body={"seed": 7})
found["sizes"] = [size(base64.b64decode(each.b64_json)) for each in drawn.data]
found["size"], found["usage"] = drawn.size, drawn.usage.total_tokens
again = client.images.generate(prompt="三只企鹅", n=1, size="1024x1536", extra_body={"seed": 7, "style": "探索无限"})
found["same"] = again.data[0].b64_json == drawn.data[0].b64_json
by_url = client.images.generate(prompt="三只企鹅", response_format="url")
found["url"], found["b64 beside url"] = by_url.data[0].url, by_url.data[0].b64_json
found["events"] = []
for event in client.images.generate(
    prompt="三只企鹅", stream=True, partial_images=2, model="gpt-image-1", extra_body={"steps": 40}
):
    found["events"].append([event.type, size(base64.b64decode(event.b64_json))])
with open(picture, "rb") as file:
    content = file.read()
mask = io.BytesIO(content)
edited = client.images.edit(image=("a.png", content), mask=("m.png", mask), prompt="三只企鹅", extra_body={"seed": 3})
found["edit"] = size(base64.b64decode(edited.data[0].b64_json))
found["edit unmasked"] = base64.b64decode(edited.data[0].b64_json)[:1].hex()
for name, call in {
    "bad size": lambda: client.images.generate(prompt="猫", size="huge"),
    "model": lambda: client.images.generate(prompt="猫", model="another"),
    "failed": lambda: client.images.generate(prompt="不许画的"),
    "key": lambda: openai.OpenAI(base_url=url + "/v1", api_key="wrong").images.generate(prompt="猫"),
}.items():
    try:
        call()
    except openai.APIStatusError as error:
        found[name] = [type(error).__name__, error.status_code, error.code, error.message]
print(json.dumps(found, ensure_ascii=False))
