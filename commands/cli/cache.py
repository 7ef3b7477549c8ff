"""cache: what the caches hold, and whether any bit of them has changed."""

import click

from harcache.commands.cli.options import dataset_argument, json_option
from harcache.commands.cli.project import ProjectCommand
from harcache.commands.running import workspace_of
from harcache.pipeline.base.progress import say, say_json

__all__ = ["cache"]


@click.group()
def cache() -> None:
    """Look into a dataset's caches, and check that no bit of them has changed."""


@cache.command(cls=ProjectCommand, name="info")
@dataset_argument
@json_option
def cache_info(dataset: str, as_json: bool) -> None:
    """Say what the caches hold: clips, rows, bytes, codecs, classes of each split, failures.

    Example: harcache cache info demo
    """
    from harcache.commands.inspect import describe
    from harcache.stages.shared.contents import info

    found = info(workspace_of(dataset))
    if as_json:
        say_json(found)
    else:
        say(*describe(found).split("\n"))


@cache.command(cls=ProjectCommand, name="digest")
@dataset_argument
@json_option
def cache_digest(dataset: str, as_json: bool) -> None:
    """Print a digest of each clip's decoded values, and one of all clips.

    They are equal for caches that hold the same, built in one go or in steps.

    Example: harcache cache digest demo
    """
    from harcache.commands import inspect

    clips = inspect.digests(workspace_of(dataset))
    total = inspect.total(clips)
    if as_json:
        say_json({"dataset": dataset, "digest": total, "clips": clips})
    else:
        say(*(f"{digest}  {id}" for id, digest in clips.items()), f"{total}  total")


@cache.command(cls=ProjectCommand, name="verify")
@dataset_argument
@click.option("--repair", is_flag=True, help="Remove damaged parts, so that their stages make them again.")
@json_option
def cache_verify(dataset: str, repair: bool, as_json: bool) -> None:
    """Find every changed, cut or missing file, and name the clips in it.

    Ends with 1 when something is wrong; with --repair it ends with 0 once all of that is marked to be made
    again, by `dvc repro` or by the stages that it names.

    Example: harcache cache verify demo
    """
    from harcache.commands import verify

    verify.report(verify.verify(workspace_of(dataset), repair), dataset, repair, as_json)
