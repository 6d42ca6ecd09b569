"""Merges that went wrong, each in a way whose name is known: made by PEFT itself, or planted in a correct one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.faults import damage, family, models, wrong
from tests.faults.family import FAMILY, Tensors
from tests.faults.models import LLAMA, Built, Recipe, round_by_trial

WIDE = {**LLAMA, "hidden_size": 64, "intermediate_size": 64, "tie_word_embeddings": False}
RECIPES = {
    **models.RECIPES,
    "wide": Recipe(config=WIDE, targets=("q_proj", "v_proj", "up_proj", "down_proj")),
    "wide-float32": Recipe(config=WIDE, dtype="float32", lora={"r": 8, "lora_alpha": 4}),
    "rank-8": Recipe(config={**LLAMA, "tie_word_embeddings": False}, lora={"r": 8, "lora_alpha": 24}, shard="40KB"),
}
Q0, Q1 = damage.Q0, damage.Q1
V0, K0 = Q0.replace("q_proj", "v_proj"), Q0.replace("q_proj", "k_proj")
O0, O1 = (key.replace("q_proj", "o_proj") for key in (Q0, Q1))


@dataclass(frozen=True, kw_only=True)
class Made:
    """A merge to be judged. `changes`: to the Subject."""

    built: Built
    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """`on`: a recipe's or a kin's name; `plant` breaks the copy. `kind`: what must be named, `words` what the sentence must say.

    `also`: further kinds that must be named. `foreign`: the folder is another tool's."""

    on: str
    plant: Callable[[Path, Built], dict[str, Any] | None]
    kind: str | None
    words: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    foreign: bool = True


# --- reading and writing a folder --------------------------------------------------------------------------------------


def tensors_of(folder: Path) -> Tensors:
    return {key: value for path in sorted(folder.glob("*.safetensors")) for key, value in load_file(path).items()}


def put(folder: Path, changes: Tensors) -> None:
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        own = {key: value.contiguous() for key, value in changes.items() if key in tensors}
        if own:
            save_file(tensors | own, path, metadata={"format": "pt"})


def with_delta(folder: Path, built: Built, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    """W + what `change` makes of D, rounded once, in every tensor that it makes anything of."""
    base = tensors_of(built.base)
    planted = {}
    for key, delta in deltas_of(built).items():
        other = change(key, delta)
        if other is not None:
            dtype = tensors_of(folder)[key].dtype
            planted[key] = round_by_trial(base[key].double() + other, dtype)
    put(folder, planted)


def from_base(folder: Path, built: Built, chosen: Callable[[str], bool]) -> None:
    """The base's own numbers in the tensors chosen."""
    now = tensors_of(folder)
    put(
        folder,
        {key: value.to(now[key].dtype) for key, value in tensors_of(built.base).items() if key in now and chosen(key)},
    )


DELTAS: dict[Path, Tensors] = {}


def deltas_of(built: Built) -> Tensors:
    """PEFT's own, in float64, computed once for each model."""
    if built.base not in DELTAS:
        DELTAS[built.base] = models.deltas(built)
    return DELTAS[built.base]


# --- ways to go wrong ---------------------------------------------------------------------------------------------------


def unmerged(chosen: Callable[[str], bool] = lambda key: True) -> Callable[[Path, Built], None]:
    return lambda folder, built: from_base(folder, built, chosen)


def times(factor: float | Callable[[str], float]) -> Callable[[Path, Built], None]:
    def plant(folder: Path, built: Built) -> None:
        with_delta(folder, built, lambda key, delta: delta * (factor(key) if callable(factor) else factor))

    return plant


def transposed(chosen: Callable[[str], bool]) -> Callable[[Path, Built], None]:
    def plant(folder: Path, built: Built) -> None:
        with_delta(
            folder, built, lambda key, delta: delta.T if chosen(key) and delta.shape[0] == delta.shape[1] else None
        )

    return plant


def delta_of(other: Callable[[str], str]) -> Callable[[Path, Built], None]:
    def plant(folder: Path, built: Built) -> None:
        deltas = deltas_of(built)
        with_delta(folder, built, lambda key, delta: deltas[other(key)] if other(key) != key else None)

    return plant


def exchanged(*pairs: tuple[str, str]) -> Callable[[Path, Built], None]:
    """Whole tensors."""

    def plant(folder: Path, built: Built) -> None:
        now = tensors_of(folder)
        put(folder, {key: now[other].clone() for pair in pairs for key, other in (pair, pair[::-1])})

    return plant


def q_and_v(key: str) -> str:
    return key.replace("q_proj", "V").replace("v_proj", "q_proj").replace("V", "v_proj")


def other_layer(key: str) -> str:
    return key.replace("layers.0.", "layers.X.").replace("layers.1.", "layers.0.").replace("layers.X.", "layers.1.")


def twice(folder: Path, built: Built) -> None:
    now = tensors_of(folder)
    put(
        folder,
        {key: round_by_trial(now[key].double() + delta, now[key].dtype) for key, delta in deltas_of(built).items()},
    )


def merged_by_peft(folder: Path, base: Path, adapter: Path, kind: Any, dtype: torch.dtype) -> None:
    """merge_and_unload in this dtype, saved beside what a folder has besides."""
    model = kind.from_pretrained(base, dtype=dtype)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    fresh = folder.with_name(f"{folder.name}-by-peft")
    merged.save_pretrained(fresh)
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        path.unlink()
    shutil.copytree(fresh, folder, dirs_exist_ok=True)
    shutil.rmtree(fresh)


def by_peft(dtype: str, *, times: int = 1) -> Callable[[Path, Built], None]:
    def plant(folder: Path, built: Built) -> None:
        kind = models.model_class(built.recipe)
        for time in range(times):
            source = folder if time else built.base
            merged_by_peft(folder, source, built.adapter, kind, getattr(torch, dtype))

    return plant


def by_peft_of_kin(name: str, dtype: str = "bfloat16", *, times: int = 1) -> Callable[[Path, Built], None]:
    def plant(folder: Path, built: Built) -> None:
        kin = FAMILY[name]
        for time in range(times):
            source = folder if time else built.base
            merged_by_peft(folder, source, built.adapter, family._class(kin), getattr(torch, dtype))

    return plant


def in_exact_numbers(name: str, change: Callable[[wrong.At, Tensors], None]) -> Callable[[Path, Built], None]:
    """A fault of tests/faults/wrong.py."""

    def plant(folder: Path, built: Built) -> None:
        kin, at = FAMILY[name], wrong.At(FAMILY[name], built)
        shutil.rmtree(folder)
        family.merge(kin, built, folder, lambda exact: change(at, exact))

    return plant


def arithmetic(add: Callable[..., torch.Tensor]) -> Callable[[Path, Built], None]:
    def plant(folder: Path, built: Built) -> None:
        shutil.rmtree(folder)
        models.merge(built, folder, add=add)

    return plant


def delta_first(weight: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return weight + delta.to(weight.dtype)


def through_half(weight: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (weight.double() + delta).to(torch.float16).to(dtype)


def toward_zero(weight: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    exact = weight.double() + delta
    near = round_by_trial(exact, dtype)
    return torch.where(near.double().abs() > exact.abs(), (near.view(torch.int16) - 1).view(dtype), near)


def a_per_cent_more(weight: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return weight + (1.01 * delta).to(weight.dtype)


def linear(key: str) -> bool:
    return "proj" in key


def quantised(form: str, *, result: bool = False) -> Callable[[Path, Built], None]:
    """bitsandbytes' own form of every linear weight of the base, or of the merge."""

    def plant(folder: Path, built: Built) -> None:
        from bitsandbytes import functional

        def back(weight: torch.Tensor) -> torch.Tensor:
            if form == "int8":
                scale = weight.float().abs().amax(dim=1, keepdim=True) / 127
                return ((weight.float() / scale).round() * scale).double()
            packed, state = functional.quantize_4bit(weight.float(), quant_type=form, compress_statistics=True)
            return functional.dequantize_4bit(packed, state).double()

        base, now, deltas = tensors_of(built.base), tensors_of(folder), deltas_of(built)
        planted = {}
        for key in filter(linear, now):
            delta = deltas.get(key, torch.zeros(()))
            exact = back(base[key].double() + delta) if result else back(base[key]) + delta
            planted[key] = round_by_trial(exact.double(), now[key].dtype)
        put(folder, planted)

    return plant


def another_base(size: float) -> Callable[[Path, Built], None]:
    """Every matrix of the base moved by `size` of its own, before the merge."""

    def plant(folder: Path, built: Built) -> None:
        now, generator = tensors_of(folder), torch.Generator().manual_seed(5)
        moved = {}
        for key, value in now.items():
            if value.dim() > 1:
                noise = torch.randn(value.shape, generator=generator) * value.float().std() * size
                moved[key] = (value.float() + noise).to(value.dtype)
        put(folder, moved)

    return plant


def unrelated_base(folder: Path, built: Built) -> None:
    other = folder.with_name("unrelated")
    models.save_base(built.recipe, other, 7)
    deltas = deltas_of(built)
    put(folder, {key: round_by_trial(value.double() + deltas.get(key, 0.0), value.dtype)
                 for key, value in tensors_of(other).items()})  # fmt: skip
    shutil.rmtree(other)


def another_adapter(share: float) -> Callable[[Path, Built], None]:
    """Held to an adapter whose factors were drawn anew, but for a share of the old ones."""

    def plant(folder: Path, built: Built) -> dict[str, Any]:
        adapter = Path(shutil.copytree(built.adapter, folder.with_name("adapter")))
        path, generator = adapter / "adapter_model.safetensors", torch.Generator().manual_seed(9)
        drawn = {}
        for key, value in load_file(path).items():
            noise = torch.randn(value.shape, generator=generator) * value.std()
            drawn[key] = (share * value + (1 - share**2) ** 0.5 * noise).to(value.dtype)
        save_file(drawn, path, metadata={"format": "pt"})
        return {"adapter": adapter}

    return plant


def rows(
    chosen: Iterable[int], key: str, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Callable[[Path, Built], None]:
    """Some rows of one tensor: `change` takes the merged rows and the base's."""

    def plant(folder: Path, built: Built) -> None:
        at = torch.tensor(list(chosen))
        value, base = tensors_of(folder)[key].clone(), tensors_of(built.base)[key]
        value[at] = change(value[at], base[at]).to(value.dtype)
        put(folder, {key: value})

    return plant


def lost(*keys: str) -> Callable[[Path, Built], None]:
    def plant(folder: Path, built: Built) -> None:
        for path in folder.glob("*.safetensors"):
            tensors = load_file(path)
            if tensors.keys() & set(keys):
                save_file(
                    {key: value for key, value in tensors.items() if key not in keys}, path, metadata={"format": "pt"}
                )
        if (folder / damage.INDEX).exists():
            damage.change_index(folder, lambda index: [index["weight_map"].pop(key, None) for key in keys] and None)
            damage.declare_size(folder)

    return plant


def both(*plants: Callable[[Path, Built], Any]) -> Callable[[Path, Built], None]:
    def plant(folder: Path, built: Built) -> None:
        for each in plants:
            each(folder, built)

    return plant


def the_bases_vocabulary(folder: Path, built: Built) -> None:
    """The rows that the adapter added are gone, and config.json with them."""
    now, base = tensors_of(folder), tensors_of(built.base)
    put(folder, {key: value[: base[key].shape[0]] for key, value in now.items() if base[key].shape != value.shape})
    shutil.copy(built.base / "config.json", folder)


def the_bases_class(folder: Path, built: Built) -> None:
    """merge_and_unload of the class without the head: what the base has, and no more."""
    base, now = tensors_of(built.base), tensors_of(folder)
    for path in folder.glob("*.safetensors"):
        save_file({key: now.get(key, value) for key, value in base.items()}, path, metadata={"format": "pt"})
    shutil.copy(built.base / "config.json", folder)


def two_that_cancel(folder: Path, built: Built) -> None:
    """One row has too much of its delta and another none, so that the tensor's ‖D‖ stays about what it was."""

    def change(key: str, delta: torch.Tensor) -> torch.Tensor | None:
        if key != Q0:
            return None
        delta = delta.clone()
        delta[3] *= 2**0.5 * delta[4].norm() / delta[3].norm()
        delta[4] = 0.0
        return delta

    with_delta(folder, built, change)


def last_shard(folder: Path, built: Built) -> None:
    last = sorted(path.name for path in folder.glob("*.safetensors") if any("proj" in key for key in load_file(path)))[
        -1
    ]
    shutil.copy(built.base / last, folder / last)


def dora_times(at: wrong.At, exact: Tensors, factor: float) -> None:
    """DoRA over a delta of another size."""
    for module in _modules(at):
        value = at.base[f"{module}.weight"] + factor * at.delta(module)
        exact[f"{module}.weight"] = value * (at.adapter[f"{module}.lora_magnitude_vector"] / value.norm(dim=1))[:, None]


def no_magnitudes(at: wrong.At, exact: Tensors) -> None:
    for module in _modules(at):
        exact[f"{module}.weight"] = at.base[f"{module}.weight"] + at.delta(module)


def _modules(at: wrong.At) -> list[str]:
    return [key.removesuffix(".lora_magnitude_vector") for key in at.adapter if key.endswith(".lora_magnitude_vector")]
