from __future__ import annotations

import pytest

from aggregation.codecs import make_codec
from fedge.errors import ConfigError
from tests.unit.aggregation.codecs.oracles import SPECS

UNBIASED = {"raw", "f32", "int8", "int4", "rotate+int8", "rotate+int4"}


@pytest.mark.parametrize("spec", SPECS)
def test_a_codec_says_whether_it_is_unbiased(spec: str) -> None:
    assert make_codec(spec).unbiased is (spec in UNBIASED)


@pytest.mark.parametrize("spec", SPECS)
def test_a_written_form_is_parsed_once(spec: str) -> None:
    assert make_codec(spec) is make_codec(spec)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "RAW",
        "raw+int8",
        "int8+raw",
        "raw:1",
        "int8:4",
        "int8:",
        "f16+int8",
        "int8+topk:0.1",
        "topk:0.1",
        "topk+f16",
        "topk:0+f16",
        "topk:2+f16",
        "topk:0.1+raw",
        "topk:0.1+topk:0.1+f16",
        "topk:0.1+randomk:0.1+f16",
        "topk:0.1+rotate",
        "rotate",
        "rotate:2+int8",
        "rotate+f16",
        "rotate+raw",
        "rotate+rotate+int8",
        "rotate+topk:0.1+int8",
        "eden:1",
        "topk:0.1+eden:1",
        "rotate+eden",
        "rotate+eden:5",
        "rotate+signs:0.5",
        "signs",
        "int8+signs:0.5",
        "topk:0.1+signs:0.5+signs:0.5+f16",
        "topk:0.1+f16+signs:0.5+signs:0.5",
        "topk:0.1+f16+int8",
        "pickle",
        "+",
        "topk:0.1++f16",
        " int8",
    ],
)
def test_a_form_that_makes_no_sense_is_an_error_that_says_what_does(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed: raw, or \[topk:SHARE") as caught:
        make_codec(spec, key="round.codec")
    assert caught.value.key == "round.codec"
    assert str(caught.value).startswith(f"round.codec: no codec: {spec!r}")


def test_a_very_long_form_is_a_short_error() -> None:
    with pytest.raises(ConfigError, match="longer than") as caught:
        make_codec("int8+" * 100_000)
    assert len(str(caught.value)) < 400
