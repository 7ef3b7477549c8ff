"""What is drawn for looking at it: persons, montages, videos, charts, and the pieces of the report."""

from importlib.resources import files

__all__ = ["template"]


def template(name: str) -> str:
    """Return a file of the folder ``templates``: a style or a script that pages and pictures hold."""
    return files(__name__).joinpath("templates", name).read_text()
