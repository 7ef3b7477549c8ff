"""What there is of a dataset, opened once for all sections of the report."""

from dataclasses import dataclass, field

from harcache import cache
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.clips import Clip, read_classes, read_manifest
from harcache.stages.shared.crop_table import Crop, read_crops
from harcache.stages.shared.workspace import EXTRACTION, Workspace

__all__ = ["AGAIN", "Contents", "read_contents"]

AGAIN = "; run the stage that writes it again"  # what helps where a file is damaged


@dataclass
class Contents:
    """What is there of a dataset; ``missing`` says what is not, and what makes it."""

    workspace: Workspace
    clips: dict[str, Clip]
    classes: dict[str, list[str]]
    crops: dict[str, Crop]
    stores: dict[str, cache.ClipStore]
    missing: list[str] = field(default_factory=list)


def read_contents(workspace: Workspace) -> Contents:
    """Read the tables and open the stores of a dataset; what is not there is in ``missing``."""
    clips = {clip.id: clip for clip in read_manifest(workspace.manifest)}
    classes = read_classes(workspace.classes) if workspace.classes.is_file() else {}
    contents = Contents(workspace, clips, classes, {}, {})
    if workspace.crops.is_file():
        contents.crops = read_crops(workspace.crops)
    for array, folder in (("frames", workspace.rgb), ("volume", workspace.heatmaps)):
        if folder.is_dir():
            try:
                contents.stores[array] = cache.open(folder)
            except HarcacheError as error:
                contents.missing.append(str(error))
    for stage in EXTRACTION:
        if not workspace.counts(stage).is_file():
            contents.missing.append(f"The stage {stage} has not ended: harcache {stage} {workspace.dataset}")
    return contents
