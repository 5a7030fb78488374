"""The real clients, unchanged, against a service. Where they are: see `environment`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

HERE = Path(__file__).parent
# Name of an environment, what is installed in it: they do not all fit beside each other or beside Paddle.
ENVIRONMENTS = {
    "baidu": ("wenxin-api==0.2.1", "erniebot==0.5.9", "webuiapi==0.9.17"),
    "modern": ("openai>=1.60", "huggingface_hub>=1", "Pillow"),
    "qianfan": ("qianfan==0.4.12.3",),
}


def environment(name: str, module: str) -> str:
    """Python with a client: of the folder of environments (tools/clients.sh makes it), or this one."""
    folder = Path(os.environ.get("PPVILG_CLIENTS", HERE.parents[1] / "output" / "clients"))
    python = folder / name / "bin" / "python"
    if python.is_file():
        return str(python)
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed (tools/clients.sh installs it in {folder})")
    return sys.executable


def run(python: str, script: str, *arguments: str, **variables: str) -> dict:
    """What a client's script found."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    result = subprocess.run(
        [python, str(HERE / "clients" / script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**kept, "NO_PROXY": "127.0.0.1", **variables},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> str:
    """A picture of the tiny model's size, its left half transparent."""
    image = Image.new("RGBA", (16, 16), (200, 30, 30, 255))
    image.paste((30, 200, 30, 0), (0, 0, 8, 16))
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    image.save(path)
    return str(path)


def test_wenxin_api(served, picture):
    found = run(environment("baidu", "wenxin_api"), "wenxin.py", served.url, served.ak, served.sk, picture)
    assert found["sleep"] == 20 and found["seconds"] < 20
    assert len(found["pictures"]) == 2 and min(found["pictures"]) > 100
    assert len(found["reference"]["imgUrls"]) == len(found["console"]["imgUrls"]) == 1
    assert (found["style"]["code"], found["empty"]["code"]) == (4003, 4002)
    assert found["failed"]["code"] != 0 and found["failed"]["data"]["status"] == 2
    assert found["failed"]["msg"] == "nobody may see this"
    assert found["failed console"] == {"imgUrls": []}
    assert "not valid" in found["wrong key"]


def test_erniebot(served):
    token = served.service.authenticator.new_token(served.ak, served.sk)
    found = run(environment("baidu", "erniebot"), "ernie.py", served.url, token)
    assert len(found["path"]) == len(found["host"]) == 2 and min(found["path"]) > 100
    assert len(found["v1"]) == 1
    assert "nobody may see this" in found["failed"][1]
    assert found["failed v2"][0] in ("APIError", "BadRequestError")
    assert found["style"][0] == found["long"][0] == "BadRequestError"
    assert found["token"][0] in ("InvalidTokenError", "TokenUpdateFailedError")


def test_openai(served, picture):
    found = run(environment("modern", "openai"), "openai_images.py", served.url, served.sk, picture)
    assert found["models"] == ["tiny"]
    assert found["sizes"] == [[16, 24], [16, 24]] and found["size"] == "16x24"
    assert found["same"] and found["usage"] > 0
    assert found["url"].startswith(served.url) and found["b64 beside url"] is None
    kinds = [kind for kind, _ in found["events"]]
    assert kinds[-1] == "image_generation.completed" and set(kinds[:-1]) <= {"image_generation.partial_image"}
    assert found["edit"] == [16, 16]
    assert found["bad size"][:2] == ["BadRequestError", 400] and found["model"][1] == 404
    assert "nobody may see this" in found["failed"][3]
    assert found["key"][:3] == ["AuthenticationError", 401, "invalid_api_key"]


@pytest.mark.parametrize("name", ["modern", "here"])
def test_huggingface_hub(served, picture, name):
    python = sys.executable if name == "here" else environment(name, "huggingface_hub")
    found = run(python, "hugging.py", served.url, served.sk, picture)
    assert found["size"] == [16, 24] and found["same"]
    assert found["from picture"] == found["from picture alone"] == [16, 16]
    assert "nobody may see this" in found["failed"][1] and "401" in found["key"][1]


def test_webuiapi(served, picture):
    python = environment("baidu", "webuiapi")
    found = run(python, "webui.py", "127.0.0.1", str(served.port), served.ak, served.sk, picture)
    assert found["sizes"] == [[16, 16], [16, 16]]
    info = found["info"]
    assert (info["seed"], info["all_seeds"], info["steps"], info["cfg_scale"]) == (7, [7, 8], 3, 2.0)
    assert info["sampler_name"] == "DDIM" and found["infotexts"] == 2
    assert "Seed: 7" in json.dumps(found["png info"])
    assert found["painted"] == [16, 16] and found["kept"] and found["inverted"]
    assert found["model"].startswith("tiny") and found["names"] == [found["model"]]
    assert len(found["styles"]) == 17 and "Euler a" in found["samplers"]
    assert found["failed"] == [422, "nobody may see this"]
    assert found["interrupt"] == {} and found["progress"] == 0


def test_qianfan(served):
    python = environment("qianfan", "qianfan")
    found = run(python, "qianfan_images.py", served.url, served.ak, served.sk, HOME=os.environ.get("HOME", "/tmp"))
    assert found["pictures"] == ["89504e47"] * 2
    assert found["failed"] == [336003, "nobody may see this"] and found["style"][0] == 336003
