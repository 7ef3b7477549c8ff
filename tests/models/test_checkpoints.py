"""Promises of models.checkpoints: what was saved comes back, released weights load, and nothing else does."""

import resource

import pytest
import torch

from harcache.benchmarks.conv3d import EPAMNet3d
from harcache.models import checkpoints
from harcache.models.checkpoints import (
    build_network,
    import_released_checkpoint,
    load_any_network,
    load_checkpoint,
    load_network,
    load_released_checkpoint,
    save_checkpoint,
)
from harcache.models.networks.epam_net import EPAMNet
from harcache.models.networks.xshiftnet import PoseXShiftNet, RGBXShiftNet
from harcache.pipeline.base.errors import HarcacheError
from tests.models.wild_weights import wild

WEIGHT = "pose_cls_head.fc_cls.weight"
SMALL = {"num_classes": 4, "width": 8, "rgb_blocks": (1, 1), "pose_blocks": (1,)}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def network():
    return wild(EPAMNet(**SMALL))


@pytest.fixture
def released():
    return wild(EPAMNet3d(4, 16, (1, 1), (1,))).state_dict()


@pytest.mark.parametrize(
    "network",
    [
        EPAMNet(**SMALL),
        EPAMNet(**SMALL, attention="spatial_temporal", rgb_frames=4),
        RGBXShiftNet(4, 8, (1, 1), shift=0, temporal_kernel=3, hidden=16),
        PoseXShiftNet(4, in_channels=5, width=8, blocks=(1,)),
    ],
)
def test_a_saved_network_comes_back_whole(network, tmp_path):
    save_checkpoint(tmp_path / "a" / "net.pt", wild(network), ["sit", "stand"], {"epoch": 3, "top1": 0.5})
    again, checkpoint = load_network(tmp_path / "a" / "net.pt")
    assert type(again) is type(network)
    assert equal(again.state_dict(), network.state_dict())
    assert checkpoint.classes == ("sit", "stand")
    assert checkpoint.extra == {"epoch": 3, "top1": 0.5}
    assert checkpoint.config == network.config


def test_saving_again_replaces_the_file_and_leaves_nothing_beside_it(network, tmp_path):
    path = tmp_path / "net.pt"
    save_checkpoint(path, network, extra={"epoch": 1})
    save_checkpoint(path, network, extra={"epoch": 2})
    assert load_checkpoint(path).extra == {"epoch": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt"]


def test_the_same_network_gives_the_same_bytes(network, tmp_path):
    for name in ("one", "two"):
        save_checkpoint(tmp_path / name, network, ["sit"])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_changed_weight_is_found(network, tmp_path):
    path = tmp_path / "net.pt"
    save_checkpoint(path, network)
    content = torch.load(path, weights_only=True)
    content["state_dict"][WEIGHT].view(torch.int32)[0, 0] ^= 4
    torch.save(content, path)
    with pytest.raises(HarcacheError, match=r"net.pt is damaged: its weights do not match their checksum"):
        load_checkpoint(path)


@pytest.mark.parametrize("released", [False, True])
def test_a_flipped_bit_in_any_weight_is_found(released, network, tmp_path):
    path = tmp_path / "net.pt"
    save_checkpoint(path, network)
    if released:
        torch.save(network.state_dict(), path)
    whole = path.read_bytes()
    # What is shorter stands in other places too.
    for value in (value for value in network.state_dict().values() if value.numel() > 4):
        data = bytearray(whole)
        data[whole.rindex(value.numpy().tobytes())] ^= 4
        path.write_bytes(data)
        with pytest.raises(HarcacheError, match=r"net\.pt cannot be read .*damaged: Bad CRC-32 for file"):
            load_any_network(path)


def test_a_torn_file_is_found(network, tmp_path):
    path = tmp_path / "net.pt"
    save_checkpoint(path, network)
    data = path.read_bytes()
    for length in (0, 10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(HarcacheError, match=r"net.pt cannot be read as a checkpoint"):
            load_checkpoint(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(HarcacheError, match=r"there is no checkpoint .*net.pt"):
        load_checkpoint(tmp_path / "net.pt")


def test_a_full_disk_is_told_of_in_one_line_and_leaves_the_file_of_before(tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(b"of before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(HarcacheError, match=r"net\.pt could not be written: file too large; make room"):
            save_checkpoint(path, EPAMNet(**SMALL))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"of before"


class Harm:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in the file was run')",)


def test_code_in_a_file_is_never_run(tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"format": "harcache-checkpoint-1", "extra": Harm()}, path)
    with pytest.raises(
        HarcacheError, match=r"checkpoint of plain weights \(it names exec, which was not run\)"
    ):
        load_checkpoint(path)
    with pytest.raises(HarcacheError, match="cannot be read as a checkpoint of plain weights"):
        load_released_checkpoint(EPAMNet(**SMALL), path)


def test_a_file_of_a_newer_version_is_named_so(tmp_path):
    torch.save({"format": "harcache-checkpoint-9"}, tmp_path / "net.pt")
    with pytest.raises(HarcacheError, match=r"net\.pt was written by a newer version of harcache"):
        load_any_network(tmp_path / "net.pt")


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], {"format": "other-checkpoint-9"}])
def test_a_foreign_file_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(HarcacheError, match=r"net.pt is no harcache checkpoint"):
        load_checkpoint(tmp_path / "net.pt")


def test_a_checkpoint_that_lost_a_part_is_refused(network, tmp_path):
    path = tmp_path / "net.pt"
    save_checkpoint(path, network)
    content = torch.load(path, weights_only=True)
    del content["state_dict"]
    torch.save(content, path)
    with pytest.raises(HarcacheError, match=r"net.pt is damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "unusual", [lambda w: w.to_sparse(), lambda w: w.to("meta"), lambda w: w[:1].clone().expand_as(w)]
)
@pytest.mark.parametrize("released", [False, True])
def test_weights_that_are_no_plain_numbers_in_memory_are_refused(unusual, released, network, tmp_path):
    path = tmp_path / "net.pt"
    save_checkpoint(path, network)
    content = torch.load(path, weights_only=True)
    content["state_dict"][WEIGHT] = unusual(content["state_dict"][WEIGHT])
    torch.save(content["state_dict"] if released else content, path)
    with pytest.raises(HarcacheError, match=r"net\.pt (is damaged|holds weights that are no plain numbers)"):
        load_any_network(path)


@pytest.mark.parametrize(
    "said",
    [
        {"network": ["epam_net"]},
        {"config": [1]},
        {"config": {"num_classes": 10**13}},
        {"config": SMALL | {"pose_blocks": [10**8]}},
        {"config": SMALL | {"width": 10**6}},
        {"classes": [["sit"]]},
    ],
)
def test_a_checkpoint_that_describes_no_network_is_refused(said, network, tmp_path):
    path = tmp_path / "net.pt"
    save_checkpoint(path, network)
    content = torch.load(path, weights_only=True) | said
    del content["digest"]
    torch.save(content | {"digest": checkpoints._digest(content)}, path)
    with pytest.raises(HarcacheError, match=r"net\.pt is damaged: |cannot be built from|of another shape"):
        load_network(path)


def test_networks_are_built_by_name():
    assert isinstance(build_network("epam_net", SMALL), EPAMNet)


def test_an_unknown_network_is_refused_with_the_nearest_name():
    with pytest.raises(HarcacheError, match=r"no network 'epamnet'. Did you mean 'epam_net'"):
        build_network("epamnet", SMALL)


def test_an_unknown_argument_is_refused():
    with pytest.raises(HarcacheError, match=r"'epam_net' cannot be built from .*widht"):
        build_network("epam_net", {"num_classes": 4, "widht": 8})


@pytest.mark.parametrize("wrapper", ["model_state_dict", "state_dict", None])
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_released_weights_load_however_they_are_wrapped(wrapper, prefix, released, tmp_path):
    state = {prefix + name: value for name, value in released.items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "epam.pth")
    network = EPAMNet(**SMALL | {"width": 16})
    load_released_checkpoint(network, tmp_path / "epam.pth")
    for name, value in network.state_dict().items():
        assert torch.equal(value, released[name].reshape(value.shape))


def test_released_weights_of_one_stream_load(released, tmp_path):
    stream = {
        name.replace("pose_", "", 1): value for name, value in released.items() if name.startswith("pose_")
    }
    torch.save({"state_dict": stream}, tmp_path / "pose.pth")
    network = PoseXShiftNet(4, width=16, blocks=(1,))
    load_released_checkpoint(network, tmp_path / "pose.pth")
    assert torch.equal(network.cls_head.fc_cls.weight, released["pose_cls_head.fc_cls.weight"])


def refusal(state, tmp_path):
    torch.save(state, tmp_path / "epam.pth")
    network = EPAMNet(**SMALL | {"width": 16})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(HarcacheError) as error:
        load_released_checkpoint(network, tmp_path / "epam.pth")
    assert equal(network.state_dict(), before)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_weights_that_do_not_fit_are_listed_and_nothing_is_loaded(released, tmp_path):
    del released["rgb_backbone.conv5.bn.bias"]
    released["amfi.weight"] = torch.zeros(3)
    released["rgb_cls_head.fc_cls.weight"] = torch.zeros(9, 72)
    message = refusal(released, tmp_path)
    assert "1 missing: rgb_backbone.conv5.bn.bias" in message
    assert "1 unexpected: amfi.weight" in message
    assert "1 of another shape: rgb_cls_head.fc_cls.weight (9, 72) instead of (4, 72)" in message


def test_a_kernel_over_several_frames_is_not_taken_for_a_flat_one(released, tmp_path):
    name = "rgb_backbone.layer1.0.conv2.conv.weight"
    released[name] = torch.zeros(36, 1, 3, 3, 3)
    assert f"{name} (36, 1, 3, 3, 3) instead of (36, 1, 3, 3)" in refusal(released, tmp_path)


def test_a_long_list_is_cut_short(released, tmp_path):
    message = refusal({"x": torch.zeros(1)}, tmp_path)
    assert ", ...; 1 unexpected: x" in message
    assert len(message) < 1000


@pytest.mark.parametrize("content", [[1], {"state_dict": {"a": 1}}, 3])
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "epam.pth")
    with pytest.raises(HarcacheError, match="holds no state dict"):
        load_released_checkpoint(EPAMNet(**SMALL), tmp_path / "epam.pth")


def same_weights(network, released, prefix=""):
    own = network.state_dict()
    return all(
        torch.equal(value, released[prefix + name].reshape(value.shape)) for name, value in own.items()
    )


def test_released_weights_become_a_checkpoint_that_builds_its_own_network(released, tmp_path):
    torch.save({"state_dict": released}, tmp_path / "epam.pth")
    import_released_checkpoint(tmp_path / "epam.pth", tmp_path / "net.pt")
    network, checkpoint = load_network(tmp_path / "net.pt")
    assert isinstance(network, EPAMNet)
    assert same_weights(network, released)
    assert checkpoint.extra == {"imported_from": "epam.pth"}


@pytest.mark.parametrize(("stream", "kind"), [("rgb", RGBXShiftNet), ("pose", PoseXShiftNet)])
def test_released_weights_of_a_stream_are_told_by_their_stem(stream, kind, released, tmp_path):
    alone = {
        name.removeprefix(f"{stream}_"): value
        for name, value in released.items()
        if name.startswith(f"{stream}_")
    }
    torch.save(alone, tmp_path / "stream.pth")
    import_released_checkpoint(tmp_path / "stream.pth", tmp_path / "net.pt")
    network, _ = load_network(tmp_path / "net.pt")
    assert isinstance(network, kind)
    assert same_weights(network, released, f"{stream}_")


def test_released_weights_without_attention_are_imported(released, tmp_path):
    bare = {name: value for name, value in released.items() if not name.startswith("attention_module.")}
    torch.save(bare, tmp_path / "epam.pth")
    network = import_released_checkpoint(tmp_path / "epam.pth", tmp_path / "net.pt")
    assert network.config["attention"] == "none"


def test_weights_of_another_network_are_not_imported(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(
        HarcacheError, match=r"resnet.pth holds no X-ShiftNet or EPAM-Net \('backbone.conv1_s"
    ):
        import_released_checkpoint(tmp_path / "resnet.pth", tmp_path / "net.pt")
    assert not (tmp_path / "net.pt").exists()


def test_released_weights_with_a_part_missing_are_not_imported(released, tmp_path):
    del released["rgb_backbone.conv5.bn.bias"]
    torch.save(released, tmp_path / "epam.pth")
    with pytest.raises(HarcacheError, match=r"1 missing: rgb_backbone.conv5.bn.bias"):
        import_released_checkpoint(tmp_path / "epam.pth", tmp_path / "net.pt")
