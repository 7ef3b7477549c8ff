"""The command line: what all commands share, and the list of the commands.

Each is imported when it is asked for, so that help and errors come at once.
"""

import sys
from pathlib import Path

try:
    import click

    from harcache.commands.cli.groups import LazyCommands, OutermostGroup
except ModuleNotFoundError as missing:
    # This file can be run where it lies, but what it needs is found by its installed name alone.
    if missing.name not in ("click", "harcache"):
        raise
    here = Path(__file__).resolve().parent
    sys.exit(
        f"Error: harcache is not installed in {sys.executable}; run `make setup` in {here} and use its "
        f".venv/bin/python, or install it: {sys.executable} -m pip install '{here}[all]'"
    )

__all__ = ["main"]

_COMMANDS = {
    "bench": "harcache.commands.cli.bench:bench",
    "cache": "harcache.commands.cli.cache:cache",
    "check": "harcache.commands.cli.check:check",
    "crop": "harcache.commands.cli.extraction:crop",
    "demo": "harcache.commands.cli.demo:demo",
    "detect": "harcache.commands.cli.extraction:detect",
    "evaluate": "harcache.commands.cli.evaluate:evaluate",
    "export": "harcache.commands.cli.models:export",
    "heatmap": "harcache.commands.cli.extraction:heatmap",
    "index": "harcache.commands.cli.extraction:index",
    "init": "harcache.commands.cli.init:init",
    "models": "harcache.commands.cli.models:list_models",
    "params": "harcache.commands.cli.params:params",
    "pose": "harcache.commands.cli.extraction:pose",
    "poses": "harcache.commands.cli.poses:poses",
    "predict": "harcache.commands.cli.predict:predict",
    "preview": "harcache.commands.cli.preview:preview",
    "report": "harcache.commands.cli.report:report",
    "rgb": "harcache.commands.cli.extraction:rgb",
    "train": "harcache.commands.cli.train:train",
    "weights": "harcache.commands.cli.models:weights",
}
_EPILOG = """\b
Ends with
    0  all is well
    1  an error, which one line names; with a traceback it is a defect
    2  a command or option that is not there
  130  stopped by Ctrl-C, training by SIGTERM with 143; the same command goes on

\b
Completion in bash, also zsh and fish:
    eval "$(_HARCACHE_COMPLETE=bash_source harcache)"
"""


@click.group(
    cls=OutermostGroup,
    commands=LazyCommands(_COMMANDS),
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(package_name="harcache")
@click.option(
    "--debug", is_flag=True, envvar="HARCACHE_DEBUG", show_envvar=True, help="Show errors' traceback."
)
@click.option(
    "--quiet",
    is_flag=True,
    envvar="HARCACHE_QUIET",
    show_envvar=True,
    help="Only results and errors: no progress, no notices.",
)
@click.pass_context
def main(ctx: click.Context, debug: bool, quiet: bool) -> None:
    """Turn videos of people into caches, and train action recognition from them.

    `dvc repro` calls these commands in order; each can also be run by itself. They work on the
    project (see `harcache init`) whose folder, or a folder in it, they are called in. A command that is run
    again does only what is missing. Results are printed on standard output, all else on standard error.

    Example: harcache --quiet cache info demo --json
    """
    if quiet:
        from harcache.pipeline.base.progress import quietly

        ctx.with_resource(quietly())


if __name__ == "__main__":
    main()
