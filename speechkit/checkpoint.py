"""A model on disk: a folder of weights, configuration and model card, and nothing executable.

``model.safetensors`` holds the weights, ``config.json`` the format version, the task, the class
that loads the folder and everything that class needs, ``README.md`` the model card.
"""

import hashlib
import importlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from speechkit import __version__
from speechkit.errors import RequestError
from speechkit.files import write_json, write_text

FORMAT = 1
_LOADER = re.compile(r"speechkit(\.[a-z_]+)+:[A-Za-z]+")


def save_folder(
    folder: Path | str,
    *,
    task: str,
    loader: str,
    weights: dict[str, Tensor],
    config: dict[str, Any],
    card: str,
) -> None:
    """Write a model folder as a whole; an older one of that name is replaced.

    Parameters
    ----------
    loader
        ``package.module:Class`` within speechkit, whose ``load(folder)`` reads it back.
    """
    folder = Path(os.path.realpath(folder))  # a link stays one
    fresh = folder.with_name(f".tmp-{os.getpid()}-{folder.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        safetensors.torch.save_file(tensors, fresh / "model.safetensors")
        head = {"format": FORMAT, "speechkit": __version__, "task": task, "load": loader}
        write_json(fresh / "config.json", head | config)
        write_text(fresh / "README.md", card)
        if folder.exists():
            old = folder.with_name(f".old-{os.getpid()}-{folder.name}")
            shutil.rmtree(old, ignore_errors=True)  # of a killed process that had this number
            os.replace(folder, old)
            try:
                os.replace(fresh, folder)
            except BaseException:
                os.replace(old, folder)
                raise
        else:
            os.replace(fresh, folder)
        for old in _leftovers(folder):
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # what a full disk has left


def _mend(folder: Path) -> None:
    """Finish what a kill between the two renames of `save_folder` has left undone."""
    if folder.exists() or not folder.parent.is_dir():
        return
    if not (leftovers := _leftovers(folder)):
        return
    old = max(leftovers, key=lambda path: path.stat().st_mtime)
    # renamed away only when the new one is whole
    fresh = old.with_name(old.name.replace(".old-", ".tmp-", 1))
    os.replace(fresh if fresh.is_dir() else old, folder)
    for old in leftovers:
        shutil.rmtree(old, ignore_errors=True)


def _leftovers(folder: Path) -> list[Path]:
    """Return what saves of this folder have renamed away, but for processes that still may."""
    own = re.compile(rf"\.old-(\d+)-{re.escape(folder.name)}")
    found = ((path, own.fullmatch(path.name)) for path in folder.parent.iterdir())
    return [path for path, match in found if match and not _is_another(int(match[1]))]


def _is_another(process: int) -> bool:
    """Say whether a process other than this one has the number."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True  # of another user
    except ProcessLookupError:
        return False
    return True


def load_config(folder: Path | str, *, task: str | None = None) -> dict[str, Any]:
    """Read ``config.json`` of a model folder and check format and task.

    Raises
    ------
    RequestError
        if the folder is none of ours, or of another format version or task.
    """
    folder = Path(folder)
    _mend(Path(os.path.realpath(folder)))
    path = folder / "config.json"
    if not path.is_file():
        raise RequestError(
            f"{folder}: is not a model folder (no config.json); give the folder that `train` wrote"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: is not JSON ({error}); the folder is damaged") from error
    version = config.get("format") if isinstance(config, dict) else None
    if version != FORMAT:
        raise RequestError(
            f"{folder}: model format {version!r}; this version of speechkit reads format {FORMAT}: "
            "train again, or use the version of speechkit that wrote it"
        )
    if task is not None and config.get("task") != task:
        raise RequestError(f"{folder}: a model for {config.get('task')!r}, wanted is {task!r}")
    return config


def model_digest(folder: Path) -> str:
    """Return 16 hex digits over a model folder's configuration and weights.

    Raises
    ------
    RequestError
        if it is no model folder.
    """
    load_config(folder)
    sha = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        with (folder / name).open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()[:16]


def load_weights(folder: Path | str) -> dict[str, Tensor]:
    """Read the weights of a model folder; anything but safetensors is refused unread.

    Raises
    ------
    RequestError
        if the file is missing or is no safetensors file (a renamed pickle, say).
    """
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise RequestError(f"{folder}: holds no model.safetensors; pickled weights are not read")
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise RequestError(
            f"{path}: is not a safetensors file ({error}); pickled weights are not read"
        ) from error


def load_model(folder: Path | str) -> Any:
    """Load a model folder of any task through the class that its configuration names."""
    loader = load_config(folder).get("load", "")
    if not isinstance(loader, str) or not _LOADER.fullmatch(loader):
        raise RequestError(f"{folder}: loader {loader!r} is not a class of speechkit")
    module, _, name = loader.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise RequestError(f"{folder}: loader {loader!r} is unknown here ({error})") from error
    # a module of ours may hold others' modules and classes, whose `load` would read pickles
    if not isinstance(found, type) or found.__module__ != module or not hasattr(found, "load"):
        raise RequestError(f"{folder}: loader {loader!r} is not a class of speechkit that loads")
    return found.load(folder)
