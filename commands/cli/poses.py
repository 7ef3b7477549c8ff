"""poses: those of others in, one's own out."""

from pathlib import Path

import click

from harcache.commands.cli.options import dataset_argument
from harcache.commands.cli.project import ProjectCommand
from harcache.commands.running import workspace_of

__all__ = ["poses"]


@click.group()
def poses() -> None:
    """Take poses that others estimated, and give yours to other programs; docs/poses.md tells more."""


@poses.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="HDF5 to write.")
def import_poses(file: Path, out: Path) -> None:
    """Make a FILE in PYSKL's form ready for the pose stage: `pose: {backend: import, source: OUT}`.

    Nothing in the pickle is run; entries that can't be used are listed beside OUT.

    Example: harcache poses import ntu60_hrnet.pkl --out poses/ntu60.h5
    """
    from harcache.commands import poses as poses_io

    poses_io.import_poses(file, out)


@poses.command(cls=ProjectCommand, name="export")
@dataset_argument
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Pickle to write."
)
@click.option("--protocol", help="Whose labels and splits to write. [default: all, where labels agree]")
def export_poses(dataset: str, out: Path, protocol: str | None) -> None:
    """Write the dataset's poses in PYSKL's form, with labels and splits.

    Example: harcache poses export demo --out demo.pkl
    """
    from harcache.commands import poses as poses_io

    poses_io.export_poses(workspace_of(dataset), out, protocol)
