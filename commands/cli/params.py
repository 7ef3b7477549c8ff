"""params: the table of all parameters."""

import click

__all__ = ["params"]


@click.command()
def params() -> None:
    """Print every parameter of params.yaml: its values, its default and what it is for, in Markdown.

    Example: harcache params
    """
    from harcache.pipeline.params.table import as_markdown

    click.echo(as_markdown(), nl=False)
