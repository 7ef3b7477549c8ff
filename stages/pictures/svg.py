"""Elements of SVG that stand in a page or in a file, with every text and attribute escaped."""

from collections.abc import Mapping
from xml.etree import ElementTree

from markupsafe import Markup

__all__ = ["add", "as_markup", "write"]


def add(
    parent: ElementTree.Element, tag: str, attributes: Mapping[str, str | float], **more: float
) -> ElementTree.Element:
    """Add an element to ``parent``; numbers that are no integers have one digit after the point."""
    given = {**attributes, **more}
    texts = {
        name: f"{value:.1f}" if isinstance(value, float) else str(value) for name, value in given.items()
    }
    return ElementTree.SubElement(parent, tag, texts)


def write(parent: ElementTree.Element, x: float, y: float, words: str, anchor: str) -> None:
    """Add a text, of which ``anchor`` ("start", "middle", "end") is at ``x``, and the base line at ``y``."""
    add(parent, "text", {"x": x, "y": y, "text-anchor": anchor}).text = words


def as_markup(svg: ElementTree.Element) -> Markup:
    """Return the element as text for a page."""
    # ElementTree escapes every text and attribute.
    return Markup(ElementTree.tostring(svg, encoding="unicode", short_empty_elements=False))
