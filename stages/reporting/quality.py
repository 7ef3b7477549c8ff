"""The section on quality: persons, boxes and poses as they were found, and the clips' flags."""

from typing import Any

import numpy as np
from markupsafe import Markup

from harcache.cache.annotations import read_detections
from harcache.pipeline.work.parts import read_records
from harcache.stages.pictures.charts import histogram
from harcache.stages.reporting.blocks import Table, percent
from harcache.stages.reporting.contents import Contents
from harcache.stages.reporting.sampling import sample
from harcache.stages.shared.crop_table import flag_counts
from harcache.stages.shared.units import part_file

__all__ = ["quality_section"]

_SAMPLE = 2000  # clips whose detections are read, which would take minutes for all of NTU 120
_MEANINGS = {
    "nobody": "no person was found",
    "low_confidence": "the keypoints' mean score is low",
    "whole_image": "no box could be made, so the crop is the whole image",
    "outside": "many keypoints lie outside of the image",
    "identity_change": "a person is suddenly somewhere else",
    "rarely_seen": "nobody is found in most of the frames",
    "crowded": "a frame has more persons than max_persons, so some have no poses",
}


def quality_section(contents: Contents) -> dict[str, Any]:
    """Return charts of persons, scores and boxes, and the clips of each flag."""
    crops = contents.crops.values()
    measured = [crop.quality for crop in crops if crop.quality is not None]
    charts = _detection_charts(contents)
    if measured:
        charts += [
            ("Persons kept of a clip", histogram([one.persons for one in measured], "persons", "clips")),
            ("Confidence of poses", histogram([one.confidence for one in measured], "mean score", "clips")),
        ]
    if crops:
        sides = [max(crop.box[2] - crop.box[0], crop.box[3] - crop.box[1]) for crop in crops]
        charts.append(("Size of boxes", histogram(sides, "longer side in pixels", "clips")))
    rows = (
        [
            (flag, _MEANINGS[flag], count, percent(count / len(crops)))
            for flag, count in flag_counts(crops).items()
        ]
        if measured
        else []
    )
    table = Table("Clips by quality flag", ("flag", "what it says", "clips", "of all"), rows)
    return {"charts": charts, "flags": table if rows else None}


def _detection_charts(contents: Contents) -> list[tuple[str, Markup]]:
    places = {
        outcome.id: part_file(contents.workspace.detections, record.part)
        for record in read_records(contents.workspace.detections)
        for outcome in record.outcomes
        if outcome.status == "ok"
    }
    ids = sample(sorted(places), _SAMPLE)
    frames = [boxes for id in ids for boxes in read_detections(places[id], id)]
    if not frames:
        return []
    of = "" if len(ids) == len(places) else f", {len(ids):,} random clips"
    scores = np.concatenate(frames)[:, 4]
    return [
        (f"Persons found in a frame{of}", histogram([len(one) for one in frames], "persons", "frames")),
        (f"Confidence of detections{of}", histogram(scores, "score", "boxes")),
    ]
