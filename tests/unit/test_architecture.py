"""Lines in the architecture that import-linter cannot draw."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("fedge", "aggregation", "edge_client", "server", "simulation", "benchmarks")
PUBLIC_FLOWER = ("flwr.app", "flwr.serverapp", "flwr.clientapp")
NO_PICKLE = ("pickle", "cloudpickle", "dill", "marshal", "shelve")


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (ROOT / package).rglob("*.py")


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def test_flowers_undocumented_api_is_touched_in_one_file() -> None:
    touching = {
        str(path.relative_to(ROOT))
        for path in sources()
        for module in imported_modules(path)
        if path.relative_to(ROOT).parts[0] != "benchmarks"  # there Flower is the peer
        if is_within(module, ("flwr",))
        and (not is_within(module, PUBLIC_FLOWER) or module.count(".") > 2)
    }
    assert touching == {"fedge/flower_internals.py"}


def test_nothing_is_pickled() -> None:
    assert not [
        (path, module)
        for path in sources()
        for module in imported_modules(path)
        if is_within(module, NO_PICKLE)
    ]


def test_no_file_is_longer_than_400_lines() -> None:
    generated = ("_pb2.py", "_pb2_grpc.py")
    assert not [
        path
        for path in [*sources(), *(ROOT / "tests").rglob("*.py")]
        if not path.name.endswith(generated) and len(path.read_text().splitlines()) > 400
    ]
