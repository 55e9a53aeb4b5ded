import json
import os
import pickle
import subprocess
import sys

import pytest
import torch

from speechkit import checkpoint
from speechkit.errors import RequestError


def save(folder, **changes):
    settings = {
        "task": "test",
        "loader": "speechkit.reports:Nothing",
        "weights": {"a": torch.arange(6.0).reshape(2, 3)},
        "config": {"labels": ["x", "ü"]},
        "card": "# Card\n",
    }
    checkpoint.save_folder(folder, **settings | changes)
    return folder


def rewrite(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip(tmp_path):
    weights = {
        "float": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
        "transposed": torch.arange(6).reshape(2, 3).T,
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "half": torch.tensor([1.5], dtype=torch.bfloat16, requires_grad=True),
    }
    folder = save(tmp_path / "new" / "model", weights=weights)
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    assert os.listdir(folder.parent) == ["model"]
    loaded = checkpoint.load_weights(folder)
    assert loaded.keys() == weights.keys()
    for name, tensor in weights.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
        assert not loaded[name].requires_grad
    config = checkpoint.load_config(folder, task="test")
    assert config["labels"] == ["x", "ü"]
    assert config["format"] == checkpoint.FORMAT
    assert (folder / "README.md").read_text() == "# Card\n"


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = save(tmp_path / "model")
    (folder / "left-over.txt").write_text("of the old one")
    save(folder, weights={"b": torch.ones(1)}, card="new")
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    assert list(checkpoint.load_weights(folder)) == ["b"]
    assert os.listdir(tmp_path) == ["model"]


def test_a_kill_between_the_renames_is_mended(tmp_path):
    """The old folder is renamed away, the new one, which is whole, not yet in its place."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder = tmp_path / "model"
    save(tmp_path / f".old-{gone.pid}-model")
    assert checkpoint.load_config(folder)["labels"] == ["x", "ü"]
    os.replace(folder, tmp_path / f".old-{gone.pid}-model")
    save(tmp_path / f".tmp-{gone.pid}-model", config={"labels": ["new"]})
    assert checkpoint.load_config(folder)["labels"] == ["new"]
    assert os.listdir(tmp_path) == ["model"]
    # another process that lives will do it itself
    os.replace(folder, tmp_path / f".old-{os.getppid()}-model")
    with pytest.raises(RequestError, match="is not a model folder"):
        checkpoint.load_config(folder)


def test_a_kill_of_a_process_with_this_number_is_mended(tmp_path):
    """In a container the next process often has the number of the last one."""
    folder = save(tmp_path / f".old-{os.getpid()}-model").with_name("model")
    save(tmp_path / f".tmp-{os.getpid()}-model", config={"labels": ["new"]})
    assert checkpoint.load_config(folder)["labels"] == ["new"]
    assert os.listdir(tmp_path) == ["model"]
    # killed after both renames: the next save takes away what is left
    save(tmp_path / f".old-{os.getpid()}-model")
    save(folder, config={"labels": ["newer"]})
    assert checkpoint.load_config(folder)["labels"] == ["newer"]
    assert os.listdir(tmp_path) == ["model"]


def test_what_other_folders_have_left_is_theirs(tmp_path):
    for name in (".old-999999999-my-model", ".old-backup-model"):
        save(tmp_path / name)
        with pytest.raises(RequestError, match="is not a model folder"):
            checkpoint.load_config(tmp_path / "model")
    save(tmp_path / "model")
    assert len(os.listdir(tmp_path)) == 3


def test_a_link_to_a_folder_stays_one(tmp_path):
    there = save(tmp_path / "there")
    link = tmp_path / "model"
    link.symlink_to(there)
    for label in ("first", "second"):
        save(link, config={"labels": [label]})
        assert checkpoint.load_config(link)["labels"] == [label]
    assert link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["model", "there"]


def test_a_failed_save_leaves_the_old_folder(tmp_path):
    folder = save(tmp_path / "model")
    with pytest.raises(ValueError, match="JSON"):
        save(folder, weights={"b": torch.ones(1)}, config={"x": float("nan")})
    assert list(checkpoint.load_weights(folder)) == ["a"]
    assert checkpoint.load_config(folder)["labels"] == ["x", "ü"]


def test_no_model_folder(tmp_path):
    with pytest.raises(RequestError, match=r"is not a model folder \(no config.json\); give the"):
        checkpoint.load_config(tmp_path)
    with pytest.raises(RequestError, match="is not a model folder"):
        checkpoint.load_config(tmp_path / "gone")


@pytest.mark.parametrize("text", ["{", "", "[]", "3", "\udcff"])
def test_a_broken_configuration_is_one_line(tmp_path, text):
    folder = save(tmp_path / "model")
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RequestError) as caught:
        checkpoint.load_config(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_format_versions_are_refused(tmp_path, version):
    folder = save(tmp_path / "model")
    rewrite(folder, format=version)
    with pytest.raises(RequestError, match="format"):
        checkpoint.load_config(folder)


def test_another_task_is_refused(tmp_path):
    folder = save(tmp_path / "model")
    with pytest.raises(RequestError, match="a model for 'test', wanted is 'kws'"):
        checkpoint.load_config(folder, task="kws")


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_pickles_are_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(RequestError, match="is not a safetensors file"):
        checkpoint.load_weights(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(RequestError, match=r"holds no model\.safetensors; pickled"):
        checkpoint.load_weights(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kept", [0, 7, 40])
def test_truncated_weights_are_refused(tmp_path, kept):
    path = save(tmp_path / "model") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RequestError, match="is not a safetensors file"):
        checkpoint.load_weights(path.parent)


@pytest.mark.parametrize(
    "loader",
    [
        "os:system",
        "speechkit.kws.spotter:Spotter.load",
        "speechkit_evil.module:Class",
        "speechkit:Class",
        "speechkit..x:Class",
        "",
        None,
        ["speechkit.reports:Nothing"],
    ],
)
def test_loaders_outside_our_packages_are_refused_unimported(tmp_path, monkeypatch, loader):
    folder = save(tmp_path / "model")
    rewrite(folder, load=loader)
    imported = []
    monkeypatch.setattr(checkpoint.importlib, "import_module", imported.append)
    with pytest.raises(RequestError, match="is not a class of speechkit"):
        checkpoint.load_model(folder)
    assert imported == []


@pytest.mark.parametrize("loader", ["speechkit.nowhere:Class", "speechkit.reports:Nothing"])
def test_loaders_that_are_not_there_are_refused(tmp_path, loader):
    folder = save(tmp_path / "model", loader=loader)
    with pytest.raises(RequestError, match="is unknown here"):
        checkpoint.load_model(folder)


@pytest.mark.parametrize(
    "loader",
    [
        "speechkit.manifests:json",
        "speechkit.training:torch",
        "speechkit.kws.spotter:Path",
        "speechkit.files:locked",
        "speechkit.errors:JobError",
    ],
)
def test_what_our_modules_import_is_no_loader(tmp_path, loader):
    """`torch.load` would read pickles."""
    folder = save(tmp_path / "model", loader=loader)
    with pytest.raises(RequestError, match="is not a class of speechkit that loads"):
        checkpoint.load_model(folder)


def test_the_named_class_loads_the_folder(tmp_path, monkeypatch):
    class Nothing:
        __module__ = "speechkit.reports"

        @staticmethod
        def load(folder):
            return ("loaded", folder)

    monkeypatch.setattr("speechkit.reports.Nothing", Nothing, raising=False)
    folder = save(tmp_path / "model")
    assert checkpoint.load_model(folder) == ("loaded", folder)
