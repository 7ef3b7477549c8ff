"""Evaluate: how right each network is on the test split, and, where the truth is known, how well the persons
and poses before it were found. The only stage that reads the truth.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harcache.cache.streaming.dataset import Batch
from harcache.cache.streaming.loader import ClipLoader
from harcache.models.summary import count_cost, input_shapes, measure_latency
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.base.progress import progress, say
from harcache.pipeline.clips import Clip, read_classes
from harcache.pipeline.datasets.truth import read_truth
from harcache.pipeline.params import DatasetParams
from harcache.pipeline.params.networks import AMFI_NETWORKS, EPAM_NETWORKS, WHOLE_NETWORKS, Network
from harcache.pipeline.work.engine import Engine
from harcache.pipeline.work.outcomes import read_counts
from harcache.stages.scoring.accuracy import (
    accuracy_within_pairs,
    count_confusions,
    hardest_pairs,
    mean_class_accuracy,
    softmax,
    top_accuracy,
)
from harcache.stages.scoring.results import Cost, Outputs, Scored, write_results
from harcache.stages.shared.crop_table import flag_counts, read_crops
from harcache.stages.shared.workspace import EXTRACTION, Workspace
from harcache.stages.training.inputs import NetworkInputs, inputs_of, preparation, section_of
from harcache.stages.training.samples import (
    CHECKPOINT,
    check_skeletons,
    check_stores,
    class_names,
    open_dataset,
    split_clips,
    training_params,
)
from harcache.stages.training.trained import Trained, check_classes, load_trained, scores_of

__all__ = ["run", "run_custom"]

_BATCH = 16
_PRINTED_PAIRS = 5


@dataclass(frozen=True)
class _TestSplit:
    """What the networks are tested on."""

    params: DatasetParams
    workspace: Workspace
    protocol: str
    views: int
    clips: Sequence[Clip]
    labels: np.ndarray
    classes: Sequence[str]


def run(params: DatasetParams, workspace: Workspace, engine: Engine) -> dict[str, Any]:
    """Measure the trained networks on the test split; write and print metrics, and write predictions."""
    test, scored = _score_all(_checkpoints(EPAM_NETWORKS, workspace), None, params, workspace)
    metrics: dict[str, Any] = {
        "clips": {stage: asdict(read_counts(workspace.counts(stage))) for stage in EXTRACTION}
    }
    metrics |= _accuracies(scored, test) | {"flags": flag_counts(read_crops(workspace.crops).values())}
    truth = read_truth(workspace.videos)
    if truth is not None:
        # What measures against it needs packages that training does without.
        from harcache.pipeline.datasets.demo import object_pairs
        from harcache.stages.scoring.extraction import against_truth

        metrics |= against_truth(workspace, test.clips, truth)
        if np.isin(test.labels, object_pairs()).any():
            pose = next(one for one in scored if one.name == "pose")
            metrics["top1"]["pose_in_object_pairs"] = accuracy_within_pairs(
                pose.scores, test.labels, object_pairs()
            )
    _write_and_print(Outputs.of(workspace), metrics, test, scored)
    return metrics


def run_custom(
    checkpoints: Sequence[Path],
    views: int | None,
    out: Path | None,
    amfi: bool,
    params: DatasetParams,
    workspace: Workspace,
    engine: Engine,
) -> dict[str, Any]:
    """Measure ``checkpoints``, native or released, or with none of them the trained networks; as `run` does.

    ``amfi``: those are AMFI-Net and its streams, not EPAM-Net and its. ``views`` samples a clip replace the
    parameter. Everything is written into ``out``. By default that is where the report looks for AMFI-Net's
    results, if these are its trained networks' and sampled as the parameters say; else the folder ``own`` of
    the evaluation, so that nothing of `dvc repro` changes.
    """
    paths = list(checkpoints) or _checkpoints(AMFI_NETWORKS if amfi else EPAM_NETWORKS, workspace)
    test, scored = _score_all(paths, views, params, workspace)
    if out is None and amfi and not checkpoints and views is None:
        outputs = Outputs.of_amfi(workspace)
    else:
        outputs = Outputs.under(out or workspace.evaluation / "own")
    metrics = _accuracies(scored, test) | {"checkpoints": [str(path) for path in paths]}
    _write_and_print(outputs, metrics, test, scored)
    say(f"written to {outputs.folder}")
    return metrics


def _checkpoints(networks: Sequence[Network], workspace: Workspace) -> list[Path]:
    return [workspace.training(network) / CHECKPOINT for network in networks]


def _score_all(
    paths: Sequence[Path], views: int | None, params: DatasetParams, workspace: Workspace
) -> tuple[_TestSplit, list[Scored]]:
    """Load and check all networks before any of them works; return what they say of the test clips."""
    # An early stage that is missing is named before the training that needs it.
    classes = read_classes(workspace.classes)
    check_stores(params, workspace)
    trained = _load(paths, workspace.device)
    test = _test_split(list(trained.values()), classes, views, params, workspace)
    for one in trained.values():
        check_classes(one, test.classes, f"{params.name}'s '{test.protocol}'")
        _check_protocol(one, test)
        check_skeletons(_inputs(one, test), workspace)
    return test, _with_fusion([_score(*one, test) for one in trained.items()])


def _load(paths: Sequence[Path], device: str) -> dict[str, Trained]:
    """Load networks: by kind, a kind's second one with a number."""
    trained: dict[str, Trained] = {}
    seen = Counter[str]()
    for path in paths:
        one = load_trained(path, device)
        seen[one.kind] += 1
        trained[one.kind if seen[one.kind] == 1 else f"{one.kind}-{seen[one.kind]}"] = one
    return trained


def _test_split(
    trained: Sequence[Trained],
    classes: Mapping[str, list[str]],
    views: int | None,
    params: DatasetParams,
    workspace: Workspace,
) -> _TestSplit:
    first, *others = (training_params(one.kind, params) for one in trained)
    for other in others:
        if other.protocol != first.protocol:
            raise HarcacheError(
                f"{first.KEY}.{params.name}.protocol is '{first.protocol}', but {other.KEY}.{params.name}."
                f"protocol '{other.protocol}'; compare networks of one protocol"
            )
    names = class_names(classes, first, params.name)
    clips = split_clips(workspace, first, "test")
    labels = np.array([clip.label(first.protocol) for clip in clips], np.int64)
    return _TestSplit(params, workspace, first.protocol, views or first.evaluate.clips, clips, labels, names)


def _check_protocol(trained: Trained, test: _TestSplit) -> None:
    """Another protocol's test split holds clips that the network learnt from."""
    extra = trained.checkpoint.extra
    made, protocol = extra.get("dataset"), extra.get("protocol")
    same = isinstance(made, Mapping) and made.get("name") == test.params.name
    if same and protocol != test.protocol:
        key = training_params(trained.kind, test.params).KEY
        raise HarcacheError(
            f"{trained.path} was trained on the protocol '{protocol}' and may know test clips of "
            f"'{test.protocol}'; set that as {key}.{test.params.name}.protocol, or train again"
        )


def _inputs(trained: Trained, test: _TestSplit) -> NetworkInputs:
    inputs = inputs_of(trained.kind, section_of(trained.kind, test.params), trained.graph)
    return replace(inputs, views=test.views)


def _score(name: str, trained: Trained, test: _TestSplit) -> Scored:
    """The scores of each clip, averaged over its views, and what a view costs."""
    device = test.workspace.device
    samples = open_dataset(_inputs(trained, test), test.workspace, test.clips, test.protocol)
    loader = ClipLoader(samples, _BATCH, device=device)
    prepare: Callable[..., Batch] = partial(preparation(trained.kind, test.params), device=device)
    total = np.zeros((len(test.clips), len(test.classes)))
    shapes: list[torch.Size] = []
    with progress(len(loader), f"evaluate {name}", unit="batches") as bar:
        for batch in loader:
            ready = prepare(batch)
            shapes = shapes or [ready[name].shape[1:] for name in input_shapes(trained.network)]
            np.add.at(total, ready["index"].cpu().numpy(), scores_of(trained.network, ready))
            bar.advance()
    cost = Cost(*count_cost(trained.network, shapes), measure_latency(trained.network, shapes), device)
    return Scored(name, total / test.views, cost)


def _with_fusion(scored: Sequence[Scored]) -> list[Scored]:
    """Add the mean of both streams' probabilities, without attention or gate, where both are there."""
    probabilities = {one.name: softmax(one.scores) for one in scored}
    fused = list(scored)
    for name, family in (("score_fusion", EPAM_NETWORKS), ("amfi_score_fusion", AMFI_NETWORKS)):
        poses, frames, _ = family
        if poses in probabilities and frames in probabilities:
            fused.append(Scored(name, (probabilities[poses] + probabilities[frames]) / 2))
    return fused


def _accuracies(scored: Sequence[Scored], test: _TestSplit) -> dict[str, Any]:
    counts = {
        one.name: count_confusions(one.scores.argmax(axis=1), test.labels, len(test.classes))
        for one in scored
    }
    costs = {one.name: one.cost for one in scored if one.cost is not None}
    return {
        "top1": {one.name: top_accuracy(1, one.scores, test.labels) for one in scored},
        "top5": {one.name: top_accuracy(5, one.scores, test.labels) for one in scored},
        "mean_class": {name: mean_class_accuracy(each) for name, each in counts.items()},
        "parameters": {name: cost.parameters for name, cost in costs.items()},
        "multiply_adds": {name: cost.multiply_adds for name, cost in costs.items()},
        "test": {"clips": len(test.clips), "samples_a_clip": test.views},
    }


def _write_and_print(
    outputs: Outputs, metrics: Mapping[str, Any], test: _TestSplit, scored: Sequence[Scored]
) -> None:
    # The whole network where it is there, else what comes nearest to it.
    shown = next((one for one in scored if one.name in WHOLE_NETWORKS), scored[-1])
    write_results(outputs, metrics, test.clips, test.labels, test.classes, scored, shown)
    _print_summary(metrics, test, scored, shown)


def _print_summary(
    metrics: Mapping[str, Any], test: _TestSplit, scored: Sequence[Scored], shown: Scored
) -> None:
    if "clips" in metrics:
        say(f"{'stage':<10}{'ok':>8}{'skipped':>9}{'failed':>8}")
        for stage, counts in metrics["clips"].items():
            say(f"{stage:<10}{counts['ok']:>8}{counts['skipped']:>9}{counts['failed']:>8}")
    for group in ("detect", "pose"):
        for name, value in metrics.get(group, {}).items():
            say(f"{group} {name}: {value:.3f}")
    samples = "one sample" if test.views == 1 else f"{test.views} samples"
    say(f"{len(test.clips)} test clips of '{test.protocol}', {samples} of each:")
    say(
        f"  {'network':<18}{'top-1':>7}{'top-5':>8}{'mean class':>12}"
        f"{'parameters':>12}{'G mult-adds':>13}{'ms a clip':>11}"
    )
    for one in scored:
        right = f"{metrics['top1'][one.name]:>7.1%}{metrics['top5'][one.name]:>8.1%}"
        line = f"  {one.name:<18}{right}{metrics['mean_class'][one.name]:>12.1%}"
        if one.cost is not None:
            size = f"{one.cost.parameters:>12,}{one.cost.multiply_adds / 1e9:>13.3f}"
            line += f"{size}{1000 * one.cost.latency:>11.1f}"
        say(line)
    if "pose_in_object_pairs" in metrics["top1"]:
        say(f"  pose, within pairs of objects: {metrics['top1']['pose_in_object_pairs']:.1%}")
    _print_pairs(test, shown)


def _print_pairs(test: _TestSplit, shown: Scored) -> None:
    counts = count_confusions(shown.scores.argmax(axis=1), test.labels, len(test.classes))
    pairs = hardest_pairs(counts)[:_PRINTED_PAIRS]
    if pairs:
        say(f"hardest for {shown.name}:")
    for pair in pairs:
        taken = pair.first_as_second + pair.second_as_first
        names = f"{test.classes[pair.first]} / {test.classes[pair.second]}"
        say(f"  {names}: {taken} of {pair.clips} taken for the other")
