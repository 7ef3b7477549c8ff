"""The sections of clips with pictures: failed, chosen at random, and worst by their flags."""

from collections.abc import Iterable, Sequence

from harcache.pipeline.work.parts import read_records
from harcache.stages.pictures.strips import Strips
from harcache.stages.reporting.blocks import Card
from harcache.stages.reporting.contents import Contents
from harcache.stages.reporting.dataset import LISTED, unsuccessful
from harcache.stages.reporting.sampling import sample
from harcache.stages.shared.crop_table import Crop

__all__ = ["failed_cards", "random_cards", "worst_cards"]

_RANDOM, _WORST, _FAILED = 12, 12, 24  # clips with pictures


def failed_cards(contents: Contents) -> list[Card]:
    """A picture of each clip that failed, as far as there is one.

    A video is opened only after the detect stage has read it whole: others may be why a worker died.
    """
    read = {
        outcome.id
        for record in read_records(contents.workspace.detections)
        for outcome in record.outcomes
        if outcome.status == "ok"
    }
    strips = _strips(contents, read)
    cards: list[Card] = []
    for id, stage, status, reason in unsuccessful(contents)[:LISTED]:
        picture = strips.of(id) if status == "failed" and len(cards) < _FAILED else None
        if picture:
            cards.append(Card(id, picture, (f"{stage}: {reason}",), _flags(contents, id)))
    return cards


def random_cards(contents: Contents) -> list[Card]:
    """Return clips of the stores, always the same of the same ones."""
    stored = sorted(set().union(*(store.ids for store in contents.stores.values())))
    return _cards(contents, sample(stored, _RANDOM))


def worst_cards(contents: Contents) -> list[Card]:
    """Return the clips with most flags, and among those with equally many the least confident."""
    measured = [crop for crop in contents.crops.values() if crop.quality is not None]
    stored = set().union(*(store.ids for store in contents.stores.values()))

    def goodness(crop: Crop) -> tuple[int, float, str]:
        assert crop.quality is not None
        return -len(crop.flags), crop.quality.confidence, crop.id

    worst = sorted((crop for crop in measured if crop.id in stored), key=goodness)
    return _cards(contents, [crop.id for crop in worst[:_WORST]])


def _cards(contents: Contents, ids: Sequence[str]) -> list[Card]:
    strips = _strips(contents, ())
    return [Card(id, strips.of(id), _description(contents, id), _flags(contents, id)) for id in ids]


def _strips(contents: Contents, filmed: Iterable[str]) -> Strips:
    return Strips(
        contents.stores,
        contents.workspace.videos,
        {id: contents.clips[id] for id in filmed if id in contents.clips},
    )


def _description(contents: Contents, id: str) -> list[str]:
    """Say of a clip what class it is, how long, and how sure its poses are."""
    said = []
    clip, crop = contents.clips.get(id), contents.crops.get(id)
    if clip is not None:
        named = {
            contents.classes[protocol][label]
            for protocol, label in clip.labels
            if label < len(contents.classes.get(protocol, ()))
        }
        said += [" / ".join(sorted(named)), f"{clip.frames:,} frames"]
    if crop is not None and crop.quality is not None:
        persons = "1 person" if crop.quality.persons == 1 else f"{crop.quality.persons} persons"
        said.append(f"{persons}, confidence {crop.quality.confidence:.2f}")
        said.append(f"{crop.quality.dropped} more in single frames" if crop.quality.dropped else "")
    return [text for text in said if text]


def _flags(contents: Contents, id: str) -> Sequence[str]:
    return contents.crops[id].flags if id in contents.crops else ()
