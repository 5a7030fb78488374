from __future__ import annotations

import pytest

CAPTIONS = [
    "左边是一只猫，右边是一棵松树",
    "蓝色背景上的一辆红色出租车",
    "三只企鹅",
    "一只猫在一棵松树的左边",
    "灰色的猫和棕色的狗，像素风格",
    "a red taxi on a blue background",
    "iPhone 15的手机",
    "一个碗",
]


@pytest.fixture(scope="session")
def captions():
    return CAPTIONS


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    from ppvilg.knowledge import build_tokenizer

    folder = tmp_path_factory.mktemp("knowledge") / "tokenizer"
    build_tokenizer(CAPTIONS, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    from paddlenlp.transformers import ErnieTokenizer

    return ErnieTokenizer.from_pretrained(str(tokenizer_folder))


@pytest.fixture()
def no_network(monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError(f"network touched: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
