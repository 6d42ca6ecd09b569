"""Ways to break a correct merge. Each takes the copy and what it was built from, and breaks one thing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.faults import models
from tests.faults.models import Built

Q0, Q1 = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))
K0 = "model.layers.0.self_attn.k_proj.weight"  # no adapter on it
INDEX = "model.safetensors.index.json"
DOWN1 = "model.layers.1.mlp.down_proj.weight"
Tensors = dict[str, torch.Tensor]


def shard_of(folder: Path, key: str) -> Path:
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][key]


def read(folder: Path, key: str) -> torch.Tensor:
    return load_file(shard_of(folder, key))[key]


def rewrite(path: Path, change: Callable[[Tensors], None], metadata: dict[str, str] | None = None) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata if metadata is not None else {"format": "pt"})


def replace(folder: Path, key: str, value: torch.Tensor) -> None:
    rewrite(shard_of(folder, key), lambda tensors: tensors.update({key: value.contiguous()}))


def put_delta(folder: Path, built: Built, key: str, delta: torch.Tensor) -> None:
    """Make `key` the correctly rounded sum of the base and some other delta."""
    base = read(built.base, key)
    replace(folder, key, models.round_by_trial(base.double() + delta, base.dtype))


def unmerged_module(folder: Path, built: Built) -> None:
    replace(folder, Q0, read(built.base, Q0))


def unmerged_loud_module(folder: Path, built: Built) -> None:
    """One that matters even in an untrained model, whose attention looks everywhere alike."""
    replace(folder, DOWN1, read(built.base, DOWN1))


def doubled_scaling(folder: Path, built: Built) -> None:
    for key, delta in models.deltas(built).items():
        put_delta(folder, built, key, 2 * delta)


def root_scaling(folder: Path, built: Built) -> None:
    for key, delta in models.deltas(built).items():
        put_delta(folder, built, key, delta * 4 / 4**0.5)  # α/√r for α/r, at r = 4


def transposed_delta(folder: Path, built: Built) -> None:
    put_delta(folder, built, Q0, models.deltas(built)[Q0].T)


def swapped_layers(folder: Path, built: Built) -> None:
    one, other = read(folder, Q0), read(folder, Q1)
    replace(folder, Q0, other)
    replace(folder, Q1, one)


def delta_of_another_layer(folder: Path, built: Built) -> None:
    put_delta(folder, built, Q0, models.deltas(built)[Q1])


def merged_twice(folder: Path, built: Built) -> None:
    for key, delta in models.deltas(built).items():
        once = read(folder, key)
        replace(folder, key, models.round_by_trial(once.double() + delta, once.dtype))


def flip_bit(folder: Path, key: str) -> None:
    value = read(folder, key).clone()
    value.view(torch.int16)[5, 7] ^= 1
    replace(folder, key, value)


def flipped_bit_touched(folder: Path, built: Built) -> None:
    flip_bit(folder, Q0)


def flipped_bit_untouched(folder: Path, built: Built) -> None:
    flip_bit(folder, K0)


def rounded_twice(folder: Path, built: Built) -> None:
    for key, delta in models.deltas(built).items():
        base = read(built.base, key)
        replace(folder, key, base + delta.float().to(base.dtype))


def nan_in_touched(folder: Path, built: Built) -> None:
    value = read(folder, Q0).clone()
    value[3, 4] = torch.nan
    replace(folder, Q0, value)


def infinity_in_untouched(folder: Path, built: Built) -> None:
    value = read(folder, K0).clone()
    value[3, 4] = torch.inf
    replace(folder, K0, value)


def change_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def dropped_tensor(folder: Path, built: Built) -> None:
    rewrite(shard_of(folder, K0), lambda tensors: tensors.__delitem__(K0))
    change_index(folder, lambda index: index["weight_map"].pop(K0) and None)


def extra_tensor(folder: Path, built: Built) -> None:
    rename(folder, K0, "model.layers.9.self_attn.k_proj.weight", keep=True)


def rename(folder: Path, old: str, new: str, *, keep: bool = False) -> None:
    path = shard_of(folder, old)
    rewrite(path, lambda tensors: tensors.update({new: tensors[old].clone() if keep else tensors.pop(old)}))
    change_index(folder, lambda index: index["weight_map"].update({new: path.name}))
    if not keep:
        change_index(folder, lambda index: index["weight_map"].pop(old) and None)


def base_layer_key(folder: Path, built: Built) -> None:
    rename(folder, Q0, Q0.replace(".weight", ".base_layer.weight"))


def prefixed_keys(folder: Path, built: Built) -> None:
    for key in models.base_keys(folder):
        rename(folder, key, f"base_model.model.{key}")


def stale_head(folder: Path, built: Built) -> None:
    path = shard_of(folder, K0)
    rewrite(path, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(160, 32, dtype=torch.bfloat16)}))
    change_index(folder, lambda index: index["weight_map"].update({"lm_head.weight": path.name}))


def other_shape(folder: Path, built: Built) -> None:
    replace(folder, K0, read(folder, K0)[:16])


def other_dtype(folder: Path, built: Built) -> None:
    replace(folder, K0, read(folder, K0).float())


def stale_single_file(folder: Path, built: Built) -> None:
    tensors = {key: read(built.base, key) for key in models.base_keys(built.base)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def unreferenced_shard(folder: Path, built: Built) -> None:
    save_file({"x": torch.zeros(1)}, folder / "model-00099-of-00099.safetensors", metadata={"format": "pt"})


def adapter_left_behind(folder: Path, built: Built) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((built.adapter / name).read_bytes())


def pickle_left(folder: Path, built: Built) -> None:
    torch.save({}, folder / "training_args.bin")


def temporary_left(folder: Path, built: Built) -> None:
    (folder / "model-00001-of-00002.safetensors.partial").write_bytes(b"")


def hidden_left(folder: Path, built: Built) -> None:
    (folder / ".resume").mkdir()
    (folder / ".resume" / "done.json").write_text("{}")


def dangling_link(folder: Path, built: Built) -> None:
    (folder / "notes.txt").symlink_to("../gone")


def stranger(folder: Path, built: Built) -> None:
    (folder / "notes.txt").write_text("who put this here?")


def declare_size(folder: Path) -> None:
    """Make the index's total right again."""
    total = sum(value.nbytes for path in folder.glob("*.safetensors") for value in load_file(path).values())
    change_index(folder, lambda index: index["metadata"].update(total_size=total))


def index_names_wrong_file(folder: Path, built: Built) -> None:
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    other = next(name for name in files if name != shard_of(folder, K0).name)
    change_index(folder, lambda index: index["weight_map"].update({K0: other}))


def index_leaves_the_folder(folder: Path, built: Built) -> None:
    change_index(folder, lambda index: index["weight_map"].update({K0: "../base/model.safetensors"}))


def index_forgets_key(folder: Path, built: Built) -> None:
    change_index(folder, lambda index: index["weight_map"].pop(K0) and None)


def wrong_total_size(folder: Path, built: Built) -> None:
    change_index(folder, lambda index: index["metadata"].update(total_size=17))


def truncated_file(folder: Path, built: Built) -> None:
    path = shard_of(folder, Q0)
    path.write_bytes(path.read_bytes()[:-10])


def missing_shard(folder: Path, built: Built) -> None:
    shard_of(folder, Q0).unlink()


def no_format(folder: Path, built: Built) -> None:
    rewrite(shard_of(folder, Q0), lambda tensors: None, metadata={})


def in_config(**changes: Any) -> Callable[[Path, Built], None]:
    """config.json with some values changed; None drops one."""

    def change(folder: Path, built: Built) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for key, value in changes.items():
            at, *rest = key.split("__")[::-1]
            inner = config
            for part in reversed(rest):
                inner = inner[part]
            inner[at] = value
        dropped = {key for key, value in changes.items() if value is None}
        path.write_text(json.dumps({key: value for key, value in config.items() if key not in dropped}))

    return change


def no_config(folder: Path, built: Built) -> None:
    (folder / "config.json").unlink()


def without(name: str) -> Callable[[Path, Built], None]:
    def lose(folder: Path, built: Built) -> None:
        (folder / name).unlink()

    return lose


def changed_tokenizer(folder: Path, built: Built) -> None:
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    vocabulary = found["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    path.write_text(json.dumps(found))


def changed_template(folder: Path, built: Built) -> None:
    (folder / "chat_template.jinja").write_text("{{ 'something else' }}")


def lost_template(folder: Path, built: Built) -> None:
    (folder / "chat_template.jinja").unlink()
