"""Where the parts of a quantised weight lie is all the same: any file, any order, one file for each tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bot.checkpoint.header import write_header
from bot.events import silent
from bot.partial_folder import locked_partial_dir
from bot.records import Json, Options
from bot.report_document import InputPins, MergeFacts
from bot.verify import Subject, table, verify
from tests.faults import quantised
from tests.faults.conftest import INPUTS
from tests.steps import merge_folders, plan_folders

TORCHAO = Path(__file__).parent / "torchao"
Tensors = dict[str, torch.Tensor]
LLAMA: Json = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 16,
    "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip
GPT_OSS: Json = {
    **LLAMA, "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "num_local_experts": 2, "num_experts_per_tok": 1,
    "layer_types": ["full_attention"],
}  # fmt: skip
LAYER = "model.layers.0."
NAMES: dict[str, torch.dtype] = {
    "BF16": torch.bfloat16, "F32": torch.float32, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
    "I32": torch.int32, "I64": torch.int64, "F16": torch.float16,
}  # fmt: skip
STORED = {dtype: name for name, dtype in NAMES.items()}


@dataclass(frozen=True, kw_only=True)
class Base:
    """A quantised checkpoint before it is cut into files; `config`: its config.json."""

    tensors: Tensors
    config: Json


def plain(model: Json = LLAMA) -> Tensors:
    """A tiny model's tensors in bfloat16."""
    torch.manual_seed(0)
    shapes = {"model.embed_tokens.weight": (16, 64), "lm_head.weight": (16, 64), "model.norm.weight": (64,)}
    shapes |= {f"{LAYER}{name}layernorm.weight": (64,) for name in ("input_", "post_attention_")}
    shapes |= {f"{LAYER}self_attn.{name}_proj.weight": (64, 64) for name in "qkvo"}
    if model is LLAMA:
        shapes |= {f"{LAYER}mlp.{name}_proj.weight": (64, 64) for name in ("gate", "up", "down")}
    return {key: (torch.randn(shape) * 0.1).bfloat16() for key, shape in shapes.items()}


def packed(name: str) -> Base:
    """Every matrix of the layer in one of the forms that the proofs know."""
    form = quantised.FORMS[name]()
    tensors: Tensors = {}
    for key, weight in plain().items():
        tensors |= form.pack(key, weight)[0] if key.startswith(LAYER) and weight.dim() == 2 else {key: weight}
    return Base(tensors=tensors, config={**LLAMA, "quantization_config": form.said})


def fp8(method: Json, scale: Callable[[torch.Tensor], torch.Tensor], **more: torch.Tensor) -> Base:
    """FP8 with scales of another shape, and what a module keeps beside its weight."""
    tensors: Tensors = {}
    for key, weight in plain().items():
        if not key.startswith(LAYER) or weight.dim() != 2:
            tensors[key] = weight
            continue
        each = scale(weight.float())
        tensors |= {key: (weight.float() / each).to(torch.float8_e4m3fn), f"{key}_scale": each}
        tensors |= {key.replace("weight", beside): value.clone() for beside, value in more.items()}
    return Base(tensors=tensors, config={**LLAMA, "quantization_config": method})


def mxfp4() -> Base:
    tensors, experts = plain(GPT_OSS), f"{LAYER}mlp.experts"
    tensors |= {f"{LAYER}self_attn.{name}_proj.bias": torch.ones(64).bfloat16() for name in "qkvo"}
    tensors |= {f"{LAYER}self_attn.sinks": torch.ones(2).bfloat16(), f"{LAYER}mlp.router.bias": torch.ones(2).bfloat16(),
                f"{LAYER}mlp.router.weight": torch.ones(2, 64).bfloat16()}  # fmt: skip
    for name, out in (("gate_up", 128), ("down", 64)):
        tensors[f"{experts}.{name}_proj_blocks"] = torch.randint(0, 256, (2, out, 2, 16), dtype=torch.uint8)
        tensors[f"{experts}.{name}_proj_scales"] = torch.randint(118, 124, (2, out, 2), dtype=torch.uint8)
        tensors[f"{experts}.{name}_proj_bias"] = torch.ones(2, out).bfloat16()
    return Base(tensors=tensors, config={**GPT_OSS, "quantization_config": {"quant_method": "mxfp4"}})


def torchao(name: str) -> Base:
    folder = TORCHAO / name
    return Base(
        tensors=load_file(folder / "model.safetensors"), config=json.loads((folder / "config.json").read_text())
    )


def rows(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().amax(1, keepdim=True) / 448


def whole(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().max() / 448


BASES: dict[str, Callable[[], Base]] = {
    **{name: (lambda name=name: packed(name)) for name in quantised.FORMS},  # type: ignore[misc]
    "fp8 rows": lambda: fp8({"quant_method": "fbgemm_fp8"}, rows, input_scale_ub=torch.ones(1)),
    "fp8 tensors": lambda: fp8(
        {"quant_method": "modelopt", "quant_algo": "FP8"}, whole, input_scale=torch.ones(1), k_scale=torch.ones(1)
    ),
    "mxfp4": mxfp4,
    "torchao int8": lambda: torchao("int8-activations"),
    "torchao float8": lambda: torchao("float8-rows"),
}  # fmt: skip


@cache
def base_of(name: str) -> Base:
    return BASES[name]()


def cut(base: Base, folder: Path, files: list[list[str]]) -> Path:
    """The checkpoint in these files, the tensors of each in this order."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(base.config))
    weight_map: dict[str, str] = {}
    for at, keys in enumerate(files, 1):
        name = f"model-{at:05}-of-{len(files):05}.safetensors"
        inside = [(key, base.tensors[key].contiguous()) for key in keys]
        head = write_header([(key, STORED[one.dtype], tuple(one.shape)) for key, one in inside], {"format": "pt"})
        content = b"".join(one.reshape(-1).view(torch.uint8).numpy().tobytes() for _, one in inside)
        (folder / name).write_bytes(head + content)
        weight_map |= dict.fromkeys(keys, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def adapter_for(base: Base, folder: Path, target: str = "q_proj") -> Path:
    """A LoRA on q_proj, which is packed where not only experts are; or on lm_head, which never is."""
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    hidden, head = base.config["hidden_size"], target == "lm_head"
    out = len(base.tensors["lm_head.weight"]) if head else hidden
    front = "base_model.model.lm_head" if head else f"base_model.model.{LAYER}self_attn.q_proj"
    tensors = {f"{front}.lora_A.weight": torch.randn(2, hidden), f"{front}.lora_B.weight": torch.randn(out, 2)}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [target], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


OPTIONS: dict[str, Options] = {
    "none": Options(quantize="none"), "same": Options(quantize="same"), "float32": Options(dtype="float32", quantize="none"),
    "nf4": Options(quantize="nf4"), "int8": Options(quantize="int8"), "rows": Options(quantize="fp8"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Known:
    """A base in one file, an adapter for it, and what their merge holds by the options' name."""

    base: Base
    adapter: Path
    merged: dict[str, dict[str, bytes]]


def bytes_of(folder: Path, exact: bool = True) -> dict[str, bytes]:
    """Every tensor of the folder as bytes; the index names each in the file that holds it, and (`exact`) their size."""
    found: dict[str, bytes] = {}
    where: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as opened:
            assert list(opened.keys()), f"{path.name} holds nothing"
            for key in opened.keys():  # noqa: SIM118
                assert key not in found
                found[key] = opened.get_tensor(key).reshape(-1).view(torch.uint8).numpy().tobytes()
                where[key] = path.name
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == where
    assert not exact or index["metadata"]["total_size"] == sum(map(len, found.values()))
    return found


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Known]:
    """Each base once, as one file, with an adapter and its merges, each proven."""

    def build(name: str) -> Known:
        folder, base = tmp_path_factory.mktemp(name.replace(" ", "-")), base_of(name)
        one, adapter = cut(base, folder / "base", [list(base.tensors)]), adapter_for(base, folder / "adapter")
        merged = {}
        for asked in asked_of(name):
            made = merge_folders(one, adapter, folder / asked, OPTIONS[asked])
            merged[asked] = bytes_of(made)
            prove(one, adapter, made, OPTIONS[asked])
        return Known(base=base, adapter=adapter, merged=merged)

    return cache(build)


def asked_of(name: str) -> tuple[str, ...]:
    """The ways to store the merge: plain always; as it was where the adapter's weight is plain, or FP8."""
    others = {"int8": ("float32", "nf4"), "nf4": ("int8",), "torchao int8": ("rows",)}
    return ("none", *(("same",) if name.startswith(("fp8", "mxfp4")) else others.get(name, ())))


def prove(base: Path, adapter: Path, merged: Path, options: Options) -> None:
    subject = Subject(
        folder=merged, base=base, adapter=adapter, inputs=InputPins.of(INPUTS), recorded=None, merge=MergeFacts.of({}),
        dtype=options.dtype, ours=True,
        level="weights", not_run=(), trust_remote_code=False, quantize=options.quantize,
    )  # fmt: skip
    report = verify(subject, silent)
    assert report.verdict == "verified", table(report)


def check(one: Known, asked: str, files: list[list[str]], folder: Path) -> None:
    """The merge of a base that lies in these files is that of the base in one, in the files that it needs; and is proven."""
    base = cut(one.base, folder / "base", files)
    merged = merge_folders(base, one.adapter, folder / "merged", OPTIONS[asked])
    assert bytes_of(merged) == one.merged[asked]
    if asked in ("none", "same"):
        prove(base, one.adapter, merged, OPTIONS[asked])


@st.composite
def cuts(draw: st.DrawFn) -> tuple[str, str, list[list[str]]]:
    """(a base, what is asked of its merge, its tensors in files): any order, any boundary."""
    name = draw(st.sampled_from(sorted(BASES)))
    asked = draw(st.sampled_from(asked_of(name)))
    keys = draw(st.permutations(sorted(base_of(name).tensors)))
    bounds = sorted(draw(st.sets(st.integers(1, len(keys) - 1), max_size=6)))
    return name, asked, [keys[low:high] for low, high in zip([0, *bounds], [*bounds, len(keys)], strict=True)]


@settings(max_examples=20, deadline=None)
@given(cuts())
def test_any_order_in_any_files_merges_into_the_same_weights(
    known: Callable[[str], Known], tmp_path_factory: pytest.TempPathFactory, drawn: tuple[str, str, list[list[str]]]
) -> None:
    name, asked, files = drawn
    check(known(name), asked, files, tmp_path_factory.mktemp("cut"))


@pytest.mark.parametrize("name", BASES)
def test_one_file_for_each_tensor_merges_into_the_same_weights(
    known: Callable[[str], Known], tmp_path: Path, name: str
) -> None:
    one = known(name)
    for asked in one.merged:
        check(one, asked, [[key] for key in sorted(one.base.tensors)], tmp_path / asked)


def test_the_scales_of_a_weight_behind_a_shard_boundary_are_no_part_of_their_own_shard(
    known: Callable[[str], Known], tmp_path: Path
) -> None:
    """As bitsandbytes' names fall: embeddings, a norm and another shard's SCB; it was called the same as the base's."""
    one = known("int8")
    second = ["lm_head.weight", "model.norm.weight", f"{LAYER}mlp.up_proj.SCB"]
    base = cut(one.base, tmp_path / "base", [second, [key for key in one.base.tensors if key not in second]])
    first, _ = plan_folders(base, one.adapter).shards
    assert not first.same_as_base
    assert first.size < (base / first.name).stat().st_size


def test_a_file_that_holds_only_parts_of_other_weights_vanishes(known: Callable[[str], Known], tmp_path: Path) -> None:
    one = known("int8")
    scales = [key for key in one.base.tensors if key.endswith(("SCB", "weight_format"))]
    base = cut(one.base, tmp_path / "base", [[key for key in one.base.tensors if key not in scales], scales])
    assert [shard.name for shard in plan_folders(base, one.adapter).shards] == ["model-00001-of-00002.safetensors"]


def test_a_killed_merge_goes_on_from_a_shard_whose_parts_lie_elsewhere(
    known: Callable[[str], Known], tmp_path: Path
) -> None:
    one = known("nf4")
    base = cut(one.base, tmp_path / "base", [[key] for key in sorted(one.base.tensors)])
    whole, plan = merge_folders(base, one.adapter, tmp_path / "whole"), plan_folders(base, one.adapter)
    with locked_partial_dir(tmp_path / "merged", plan.fingerprint) as partial:
        shutil.copy(whole / plan.shards[1].name, partial)
    merged = merge_folders(base, one.adapter, tmp_path / "merged")
    assert bytes_of(merged) == bytes_of(whole) == one.merged["none"]


# --- the base's own form, where nothing packed is touched -------------------------------------------------------------------


def test_a_file_without_changes_is_the_bases_where_its_form_is_kept(
    known: Callable[[str], Known], tmp_path: Path
) -> None:
    one = known("mxfp4")
    experts = [key for key in one.base.tensors if "experts" in key]
    base = cut(one.base, tmp_path / "base", [[key for key in one.base.tensors if key not in experts], experts[::-1]])
    merged = merge_folders(base, one.adapter, tmp_path / "merged", OPTIONS["same"])
    last = "model-00002-of-00002.safetensors"
    assert (merged / last).read_bytes() == (base / last).read_bytes()
    assert (merged / "config.json").read_bytes() == (base / "config.json").read_bytes()


@pytest.mark.parametrize("name", BASES)
def test_every_form_is_kept_where_the_adapter_changes_a_plain_weight(tmp_path: Path, name: str) -> None:
    """An adapter on the head, which no form packs: every packed tensor stays, and the quantization_config."""
    base = base_of(name)
    one, adapter = cut(base, tmp_path / "base", [sorted(base.tensors)]), adapter_for(base, tmp_path / "a", "lm_head")
    merged = merge_folders(one, adapter, tmp_path / "merged", OPTIONS["same"])
    before, after = bytes_of(one, exact=False), bytes_of(merged)
    assert before.keys() == after.keys()
    assert [key for key in before if before[key] != after[key]] == ["lm_head.weight"]
    assert json.loads((merged / "config.json").read_text()) == base.config
    prove(one, adapter, merged, OPTIONS["same"])


def test_a_lost_scale_of_a_cache_is_missed(tmp_path: Path) -> None:
    """What a loader of the base's form reads beside the weights is the base's too."""
    base = base_of("fp8 tensors")
    one, adapter = cut(base, tmp_path / "base", [sorted(base.tensors)]), adapter_for(base, tmp_path / "a", "lm_head")
    merged = merge_folders(one, adapter, tmp_path / "merged", OPTIONS["same"])
    path = merged / "model-00001-of-00001.safetensors"
    tensors = load_file(path)
    del tensors[f"{LAYER}self_attn.k_proj.k_scale"]
    tensors[f"{LAYER}self_attn.v_proj.k_scale"] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(AssertionError) as raised:
        prove(one, adapter, merged, OPTIONS["same"])
    said = "".join(str(raised.value).split())  # a table breaks its lines anywhere
    assert "k_proj.k_scaleismissing,andthebasehasit." in said
    assert "v_proj.k_scaleisnotthebase's." in said


def test_a_weight_that_the_adapter_brings_whole_takes_the_bases_fp8(tmp_path: Path) -> None:
    base = base_of("fp8")
    one, adapter = cut(base, tmp_path / "base", [sorted(base.tensors)]), adapter_for(base, tmp_path / "a")
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.0.mlp.up_proj.weight"] = torch.randn(64, 64)
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    said = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**said, "modules_to_save": ["up_proj"]}))
    prove(one, adapter, merge_folders(one, adapter, tmp_path / "merged", OPTIONS["same"]), OPTIONS["same"])


@pytest.mark.parametrize(("name", "reason"), [("compressed", "cannot be written again"), ("plain", "plain numbers")])
def test_a_form_that_cannot_be_kept_is_refused_for_its_true_reason(tmp_path: Path, name: str, reason: str) -> None:
    base = Base(tensors=plain(), config=LLAMA) if name == "plain" else base_of(name)
    one, adapter = cut(base, tmp_path / "base", [sorted(base.tensors)]), adapter_for(base, tmp_path / "a")
    (refusal,) = plan_folders(one, adapter, OPTIONS["same"]).refusals
    assert refusal.code == "quantize-same"
    assert reason in refusal.reason


def test_a_method_that_peft_merges_into_a_plain_weight_keeps_the_others_packed(tmp_path: Path) -> None:
    base = base_of("mxfp4")
    one, adapter = cut(base, tmp_path / "base", [sorted(base.tensors)]), adapter_for(base, tmp_path / "a")
    front, shapes = "base_model.model.model.layers.0.self_attn.q_proj.hada_", {"a": (64, 2), "b": (2, 64)}
    tensors = {f"{front}w{number}_{half}": torch.ones(shapes[half]) for number in (1, 2) for half in "ab"}
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    said = {"peft_type": "LOHA", "r": 2, "alpha": 2, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(said))
    plan = plan_folders(one, adapter, OPTIONS["same"])
    assert not plan.refusals
    assert {type(op).__name__ for op in plan.ops} == {"PeftMerge", "Copy"}
