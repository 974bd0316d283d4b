"""A reader of Prometheus' text format 0.0.4 that refuses what the format does not allow."""

import re

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)?\}})? (\S+)")
TYPES = ("counter", "gauge", "histogram", "summary", "untyped")
SUFFIXES = ("_bucket", "_sum", "_count")


def read_page(text: str) -> dict[str, float]:
    """Return samples by name and labels; every one must belong to a metric declared above it."""
    assert text.endswith("\n")
    types: dict[str, str] = {}
    samples: dict[str, float] = {}
    current = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            assert name not in types, f"HELP of {name} comes after its TYPE"
            continue
        if line.startswith("# TYPE "):
            _, _, current, kind = line.split(" ")
            assert re.fullmatch(NAME, current), line
            assert kind in TYPES, line
            assert current not in types, f"{current} is declared twice"
            types[current] = kind
            continue
        match = SAMPLE.fullmatch(line)
        assert match, f"not a sample: {line!r}"
        name, labels, value = match.groups()
        base = name
        if types[current] == "histogram":
            suffix = next((s for s in SUFFIXES if name.endswith(s)), None)
            assert suffix, f"a histogram has no {name}"
            base = name.removesuffix(suffix)
        assert base == current, f"{name} is not below its TYPE"
        assert (name.endswith("_total")) == (types[current] == "counter"), line
        key = name + (f"{{{labels}}}" if labels else "")
        assert key not in samples, f"{key} comes twice"
        samples[key] = float(value)
    return samples
