from pathlib import Path
from typing import Any

import pytest

from edge_client.settings import EdgeConfig, InferenceConfig
from fedge.config import build
from fedge.errors import ConfigError
from tests.tls_files import make_tls


def inference(**keys: Any) -> InferenceConfig:
    return build(EdgeConfig, {"registry": {"address": ""}, "inference": keys}).inference


def test_loopback_may_be_plaintext_and_open() -> None:
    assert inference(address="127.0.0.1:0").tls.cert is None


@pytest.mark.parametrize("given", [(), ("tls",), ("token_file",)])
def test_beyond_loopback_tls_and_a_token_are_needed(given: tuple[str, ...], tmp_path: Path) -> None:
    server, _ = make_tls(tmp_path)
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    everything: dict[str, Any] = {
        "tls": {"cert": str(server.cert), "key": str(server.key)},
        "token_file": str(token),
    }
    keys = {name: value for name, value in everything.items() if name in given}
    with pytest.raises(ConfigError, match=r"^inference\.address: .* is not on loopback"):
        inference(address="0.0.0.0:9095", **keys)
    assert inference(address="0.0.0.0:9095", **everything).token_file == token


def test_template_and_plan_belong_together() -> None:
    with pytest.raises(ConfigError, match=r"^inference\.template: .* belong together"):
        inference(template="model.tflite")


@pytest.mark.parametrize(("key", "value"), [("max_batch", 0), ("max_wait_us", -1), ("max_rows", 0)])
def test_bounds_are_checked(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"^inference\.{key}: must be"):
        inference(**{key: value})
