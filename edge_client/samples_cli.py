"""``fedge-edge samples``: look at the samples that this device keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_client.sample_reader import SampleReader, StoreFigures
from edge_client.settings import EdgeConfig
from fedge.cli import ConfigOption, SetOption
from fedge.config import load

samples_app = typer.Typer(
    help="Look at the samples that this device keeps; the daemon may run meanwhile.",
    no_args_is_help=True,
)

ToOption = Annotated[Path, typer.Option("--to", metavar="FILE", help="FILE.parquet or FILE.npz.")]


@samples_app.command()
def count(config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Tell what is stored and what has come."""
    with _open(config, overrides) as reader:
        for line in _lines(reader.figures()):
            typer.echo(line)


@samples_app.command()
def export(to: ToOption, config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Copy all samples into one file on this device."""
    from edge_client import sample_export

    with _open(config, overrides) as reader:
        exported = sample_export.export(reader, to)
    left_out = f"; {exported.damaged} damaged ones are left out" if exported.damaged else ""
    typer.echo(f"{exported.written} samples are in {to}{left_out}")


def _open(config: Path | None, overrides: list[str] | None) -> SampleReader:
    settings = load(EdgeConfig, config, overrides or ())
    return SampleReader(settings.samples_path, settings.store)


def _lines(figures: StoreFigures) -> list[str]:
    lines = [
        f"labelled        {figures.labelled}",
        f"unlabelled      {figures.unlabelled}",
        f"bytes           {figures.size_bytes}",
        f"waiting labels  {figures.waiting_labels}",
        f"ever labelled   {figures.offered}",
        f"duplicates      {figures.duplicates}",
    ]
    for name, source in figures.sources.items():
        lines.append(
            f"source {name!r}: received {source.received}, missing {source.missing}, "
            f"duplicates {source.duplicates}"
        )
    return lines
