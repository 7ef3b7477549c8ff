"""Weights are found by name, fetched whole or not at all, and loaded without running code."""

import hashlib
import pickle
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from harcache.models.pretrained import weight_files as weights
from harcache.models.pretrained.weight_files import ENVIRONMENT, find_config, find_weights, load_tensors
from harcache.pipeline.base.errors import HarcacheError

CONTENT = b"weights" * 1000


@pytest.fixture(autouse=True)
def no_folders_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


@pytest.fixture
def published(tmp_path):
    """A web server's address; it serves ``net-<hash>.pth``."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "net.pth").write_bytes(CONTENT)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/net.pth"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["demo-yolo", "demo-hrnet"])
def test_shipped_weights_are_found_by_name(name):
    assert load_tensors(find_weights(name))


def test_a_given_folder_comes_before_the_environments(tmp_path, monkeypatch):
    for folder in ("given", "environment"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.pth").write_bytes(CONTENT)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "environment"))
    assert find_weights("net", tmp_path / "given") == tmp_path / "given" / "net.pth"
    assert find_weights("net.pth") == tmp_path / "environment" / "net.pth"


def test_a_path_is_its_own_name(tmp_path):
    (tmp_path / "mine.pt").write_bytes(CONTENT)
    assert find_weights(str(tmp_path / "mine.pt")) == tmp_path / "mine.pt"


def test_public_weights_laid_in_a_folder_under_their_published_name_are_found(tmp_path):
    file = tmp_path / "td-hm_hrnet-w32_8xb64-210e_coco-256x192-81c58e40_20220909.pth"
    file.write_bytes(CONTENT)
    assert find_weights("td-hm_hrnet-w32_8xb64-210e_coco-256x192", tmp_path) == file


def test_weights_that_are_nowhere_are_an_error_that_says_where_to_put_them(tmp_path):
    with pytest.raises(HarcacheError, match=rf"'mine\.pt' are not in .* put the file at {tmp_path}/mine\.pt"):
        find_weights("mine.pt", tmp_path)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("yolo11n.pt", r"https://github\.com/ultralytics/assets/.*/yolo11n\.pt"),
        ("fasterrcnn_resnet50_fpn_v2", r"https://download\.pytorch\.org/.*-dd69338a\.pth"),
        ("td-hm_hrnet-w32_8xb64-210e_coco-256x192", r"https://download\.openmmlab\.com/.*-81c58e40_\d+\.pth"),
    ],
)
def test_public_weights_have_a_source_with_a_hash(name, url):
    source = weights._public_source(name)
    assert weights.re.fullmatch(url, source.url)
    assert weights.re.fullmatch("[0-9a-f]{8,64}", source.sha256)


def test_fetched_weights_are_whole_and_reported_on_stderr(published, tmp_path, capsys):
    source = weights._Source(published, hashlib.sha256(CONTENT).hexdigest())
    path = weights._fetch(source, tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT
    assert "100%" in capsys.readouterr().err


def test_fetched_weights_with_another_hash_leave_no_file(published, tmp_path):
    with pytest.raises(HarcacheError, match="invalid hash value"):
        weights._fetch(weights._Source(published, "0" * 64), tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []


def test_unreachable_weights_are_an_error_that_says_where_to_put_the_file(published, tmp_path):
    source = weights._Source(published.replace("net.pth", "gone.pth"), "0" * 64)
    with pytest.raises(
        HarcacheError, match=rf"could not be fetched .*404.* put the file at {tmp_path}/gone\.pth"
    ):
        weights._fetch(source, tmp_path)


def test_configs_are_found_shipped_by_path_and_in_the_zoo(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("")
    assert find_config("demo-hrnet").parent.name == "weights"
    assert find_config(str(own)) == own
    assert ".mim" in find_config("td-hm_hrnet-w32_8xb64-210e_coco-256x192").parts


@pytest.mark.parametrize("name", ["td-hm_hrnet-w33", "../demo-hrnet.pt", ""])
def test_an_unknown_config_is_an_error(name):
    with pytest.raises(
        HarcacheError, match=r"neither shipped, nor a \.py file, nor a config of the installed mmpose"
    ):
        find_config(name)


def test_tensors_and_the_numpy_values_beside_them_load(tmp_path):
    meta = {
        "sigmas": np.array([0.5], np.float32),
        "colors": np.zeros((2, 3), np.uint8),
        "score": np.float64(0.7),
    }
    torch.save({"state_dict": {"w": torch.ones(2)}, "meta": meta}, tmp_path / "net.pth")
    loaded = load_tensors(tmp_path / "net.pth")
    assert loaded["state_dict"]["w"].tolist() == [1, 1]
    assert loaded["meta"]["sigmas"] == np.float32(0.5)


class _Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run(tmp_path, save):
    save({"w": _Hostile(tmp_path / "ran")}, tmp_path / "net.pth")
    with pytest.raises(HarcacheError, match="not a checkpoint of plain tensors"):
        load_tensors(tmp_path / "net.pth")
    assert not (tmp_path / "ran").exists()


def test_a_truncated_checkpoint_is_an_error(tmp_path):
    torch.save({"w": torch.ones(1000)}, tmp_path / "net.pth")
    (tmp_path / "net.pth").write_bytes((tmp_path / "net.pth").read_bytes()[:-500])
    with pytest.raises(HarcacheError, match="not a checkpoint of plain tensors"):
        load_tensors(tmp_path / "net.pth")


def test_a_lone_tensor_is_an_error(tmp_path):
    torch.save(torch.ones(2), tmp_path / "net.pth")
    with pytest.raises(HarcacheError, match="holds a Tensor, not a dict"):
        load_tensors(tmp_path / "net.pth")
