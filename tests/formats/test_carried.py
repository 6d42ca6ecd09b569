"""What an adapter does not touch stays as it is stored: every byte of every other tensor, and config.json, in any form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes import functional
from safetensors.torch import load_file, save_file

from bot.events import silent
from bot.records import Json, Options, Plan, Report
from bot.report_document import InputPins, MergeFacts
from bot.verify import Subject, table, verify
from tests.faults import quantised
from tests.faults.conftest import INPUTS, named
from tests.formats.test_parts_in_other_shards import LAYER, LLAMA, Base, Tensors, bytes_of, cut, mxfp4, packed, plain
from tests.steps import merge_folders, plan_folders

ATTENTION = [f"{LAYER}self_attn.{name}_proj" for name in "qkvo"]
Form = Callable[[str, torch.Tensor], Tensors]


def mlp_in(form: Form, said: Json) -> Base:
    """A model whose MLP is packed, and whose attention is bfloat16."""
    tensors: Tensors = {}
    for key, weight in plain().items():
        tensors |= form(key, weight) if ".mlp." in key else {key: weight}
    return Base(tensors=tensors, config={**LLAMA, "quantization_config": said})


def known(name: str, **more: object) -> Base:
    """In a form that is read here."""
    form = quantised.FORMS[name]()
    return mlp_in(lambda key, weight: form.pack(key, weight)[0], {**form.said, **more})


def gptq(key: str, weight: torch.Tensor) -> Tensors:
    """Four bits in groups of 32, as AutoGPTQ lays them out; the numbers are anything."""
    module, (out, into) = key.removesuffix(".weight"), weight.shape
    return {
        f"{module}.qweight": torch.randint(-(2**31), 2**31 - 1, (into // 8, out), dtype=torch.int32),
        f"{module}.qzeros": torch.randint(-(2**31), 2**31 - 1, (into // 32, out // 8), dtype=torch.int32),
        f"{module}.scales": torch.rand(into // 32, out).half(),
        f"{module}.g_idx": torch.arange(into, dtype=torch.int32) // 32,
    }


def awq(key: str, weight: torch.Tensor) -> Tensors:
    module, (out, into) = key.removesuffix(".weight"), weight.shape
    return {
        f"{module}.qweight": torch.randint(-(2**31), 2**31 - 1, (into, out // 8), dtype=torch.int32),
        f"{module}.qzeros": torch.randint(-(2**31), 2**31 - 1, (into // 32, out // 8), dtype=torch.int32),
        f"{module}.scales": torch.rand(into // 32, out).half(),
    }


def hqq(key: str, weight: torch.Tensor) -> Tensors:
    module = key.removesuffix(".weight")
    return {
        f"{module}.W_q": torch.randint(0, 256, (weight.numel() // 128, 64), dtype=torch.uint8),
        f"{module}.scale": torch.rand(weight.numel() // 64, 1).half(),
        f"{module}.zero": torch.rand(weight.numel() // 64, 1).half(),
        f"{module}.shape": torch.tensor(weight.shape, dtype=torch.int32),
    }


def nvfp4(key: str, weight: torch.Tensor) -> Tensors:
    """The packed weight has the plain one's name."""
    out, into = weight.shape
    return {
        key: torch.randint(0, 256, (out, into // 2), dtype=torch.uint8),
        f"{key}_scale": torch.rand(out, into // 16).to(torch.float8_e4m3fn),
        f"{key}_scale_2": torch.rand(()),
        key.replace("weight", "input_scale"): torch.rand(()),
    }


READ: dict[str, Callable[[], Base]] = {
    "fp8": lambda: known("fp8", modules_to_not_convert=[*ATTENTION, "lm_head"]),
    "compressed": lambda: known("compressed", ignore=[*ATTENTION, "lm_head"]),
    "nf4": lambda: known("nf4", llm_int8_skip_modules=[*ATTENTION, "lm_head"]),
    "int8": lambda: known("int8", llm_int8_skip_modules=[*ATTENTION, "lm_head"]),
    "mxfp4": mxfp4,
}
UNREAD: dict[str, Callable[[], Base]] = {
    "gptq": lambda: mlp_in(gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}),
    "awq": lambda: mlp_in(awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
    "hqq": lambda: mlp_in(hqq, {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}}),
    "nvfp4": lambda: mlp_in(nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "a form of tomorrow": lambda: mlp_in(gptq, {"quant_method": "tomorrow"}),
}


def lora(folder: Path, *modules: str) -> Path:
    """On these modules of the layer, each 64 × 64."""
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    tensors = {}
    for module in modules:
        front = f"base_model.model.{LAYER}{module}"
        tensors |= {f"{front}.lora_A.weight": torch.randn(2, 64), f"{front}.lora_B.weight": torch.randn(64, 2)}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    names = sorted({module.rpartition(".")[2] for module in modules})
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": names, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


def q_and_v(folder: Path) -> Path:
    return lora(folder, "self_attn.q_proj", "self_attn.v_proj")


def with_cache_scales(base: Base) -> Base:
    """The same with scales of the cache of keys and values, beside q_proj, k_proj and v_proj and on the attention itself."""
    names = ("q_proj.q_scale", "k_proj.k_scale", "v_proj.v_scale", "k_scale", "v_scale")
    scales = {f"{LAYER}self_attn.{name}": torch.tensor([0.5]) for name in names}
    return Base(tensors={**base.tensors, **scales}, config=base.config)


TOUCHED = [f"{LAYER}self_attn.{name}_proj.weight" for name in "qv"]


def proven(base: Path, adapter: Path, merged: Path, plan: Plan, level: str = "weights") -> Report:
    return verify(
        Subject(
            folder=merged, base=base, adapter=adapter, inputs=InputPins.of(INPUTS), recorded=None, merge=MergeFacts.of({}),
            dtype="auto", ours=True, level=level, not_run=(), trust_remote_code=False, quantize=plan.options.quantize,
            required=False,
        ),
        silent,
    )  # fmt: skip


@pytest.mark.parametrize("name", [*READ, *UNREAD])
def test_every_untouched_byte_stays_and_it_is_proven(tmp_path: Path, name: str) -> None:
    base = {**READ, **UNREAD}[name]()
    keys = sorted(base.tensors)
    one, adapter = cut(base, tmp_path / "base", [keys[:5], keys[5:]]), q_and_v(tmp_path / "adapter")
    plan = plan_folders(one, adapter)
    assert plan.options.quantize == "same"
    assert "the adapter changes nothing that is packed" in plan.base_weights_why
    merged = merge_folders(one, adapter, tmp_path / "merged")
    before, after = bytes_of(one, exact=False), bytes_of(merged)
    assert before.keys() == after.keys()
    assert sorted(key for key in before if before[key] != after[key]) == TOUCHED
    assert (merged / "config.json").read_bytes() == (one / "config.json").read_bytes()
    report = proven(one, adapter, merged, plan)
    assert report.verdict == "verified", table(report)


@pytest.mark.parametrize("name", UNREAD)
def test_what_no_library_here_reads_is_proven_at_the_level_weights(tmp_path: Path, name: str) -> None:
    base = UNREAD[name]()
    one, adapter = cut(base, tmp_path / "base", [sorted(base.tensors)]), q_and_v(tmp_path / "adapter")
    plan = plan_folders(one, adapter)
    assert (plan.level, [what for what, _ in plan.not_run]) == ("weights", ["full"])
    merged = merge_folders(one, adapter, tmp_path / "merged")
    report = proven(one, adapter, merged, plan, "full")
    assert (report.verdict, report.level) == ("verified", "weights"), table(report)
    assert "not run here" in named(report, "loads").why


@pytest.mark.parametrize("name", READ)
@pytest.mark.slow
def test_what_is_carried_is_loaded_by_plain_transformers_and_proven_in_full(tmp_path: Path, name: str) -> None:
    base = READ[name]()
    one, adapter = cut(base, tmp_path / "base", [sorted(base.tensors)]), q_and_v(tmp_path / "adapter")
    merged = merge_folders(one, adapter, tmp_path / "merged")
    report = proven(one, adapter, merged, plan_folders(one, adapter), "full")
    assert (report.verdict, report.level) == ("verified", "full"), table(report)
    assert named(report, "loads").status == "pass"


@pytest.mark.parametrize("asked", [Options(quantize="none"), Options(base_weights="stored"), Options(dtype="bfloat16")])
def test_plain_numbers_asked_for_by_name_are_plain_numbers(tmp_path: Path, asked: Options) -> None:
    base, other = READ["fp8"](), UNREAD["gptq"]()
    adapter = q_and_v(tmp_path / "adapter")
    plan = plan_folders(cut(base, tmp_path / "base", [sorted(base.tensors)]), adapter, asked)
    assert plan.options.quantize == "none"
    assert dict(plan.tensors)["dequantised"] == 3
    (refusal,) = plan_folders(cut(other, tmp_path / "other", [sorted(other.tensors)]), adapter, asked).refusals
    assert "GPTQ" in refusal.reason


def test_a_packed_weight_that_is_touched_makes_the_whole_result_plain_and_is_named(tmp_path: Path) -> None:
    base = READ["fp8"]()
    adapter = lora(tmp_path / "adapter", "self_attn.q_proj", "mlp.up_proj")
    plan = plan_folders(cut(base, tmp_path / "base", [sorted(base.tensors)]), adapter)
    assert plan.options.quantize == "none"
    (note,) = [note for note in plan.notes if note.startswith("quantize:")]
    assert f"{LAYER}mlp.up_proj.weight is packed" in note
    assert "--quantize same" in note


@pytest.mark.parametrize("name", UNREAD)
def test_a_packed_weight_of_an_unread_form_is_refused_where_it_is_touched(tmp_path: Path, name: str) -> None:
    base = UNREAD[name]()
    adapter = lora(tmp_path / "adapter", "self_attn.q_proj", "mlp.up_proj")
    plan = plan_folders(cut(base, tmp_path / "base", [sorted(base.tensors)]), adapter)
    assert "quantised-base" in [refusal.code for refusal in plan.refusals]


def test_a_weight_with_scales_beside_it_is_no_plain_one(tmp_path: Path) -> None:
    """Whatever they mean: nobody here knows the form."""
    base = UNREAD["a form of tomorrow"]()
    tensors = {**base.tensors, f"{LAYER}self_attn.q_proj.channel_scale": torch.ones(64)}
    one = cut(Base(tensors=tensors, config=base.config), tmp_path / "base", [sorted(tensors)])
    (refusal,) = plan_folders(one, q_and_v(tmp_path / "adapter")).refusals
    assert refusal.code == "quantised-base"


@pytest.mark.parametrize("name", ["fp8", "compressed", "gptq", "nvfp4"])
def test_scales_of_a_cache_beside_a_plain_weight_stay_and_say_nothing_of_it(tmp_path: Path, name: str) -> None:
    base = with_cache_scales({**READ, **UNREAD}[name]())
    one, adapter = cut(base, tmp_path / "base", [sorted(base.tensors)]), q_and_v(tmp_path / "adapter")
    plan = plan_folders(one, adapter)
    assert plan.options.quantize == "same"
    merged = merge_folders(one, adapter, tmp_path / "merged")
    before, after = bytes_of(one, exact=False), bytes_of(merged)
    assert before.keys() == after.keys()
    assert sorted(key for key in before if before[key] != after[key]) == TOUCHED
    report = proven(one, adapter, merged, plan)
    assert report.verdict == "verified", table(report)


TOLD = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "nvfp4"}


def telling(base: Base, folder: Path, file: str) -> Path:
    """With what its quantiser said of the form, in a file of its own."""
    one = cut(base, folder, [sorted(base.tensors)])
    (one / file).write_text('{"bits":  4}\n')
    return one


@pytest.mark.parametrize("file", TOLD)
def test_what_a_quantiser_said_beside_config_json_goes_with_the_form(tmp_path: Path, file: str) -> None:
    one = telling(UNREAD[TOLD[file]](), tmp_path / "base", file)
    adapter = q_and_v(tmp_path / "adapter")
    plan = plan_folders(one, adapter)
    merged = merge_folders(one, adapter, tmp_path / "merged")
    assert (merged / file).read_bytes() == (one / file).read_bytes()
    report = proven(one, adapter, merged, plan)
    assert report.verdict == "verified", table(report)
    (merged / file).write_text("{}")
    assert f"{file} is not the base's" in named(proven(one, adapter, merged, plan), "config").why
    (merged / file).unlink()
    report = proven(one, adapter, merged, plan)
    assert report.verdict == "not-verified"
    assert f"{file} is lost" in named(report, "config").why


@pytest.mark.parametrize("file", TOLD)
def test_and_is_left_out_of_a_plain_result(tmp_path: Path, file: str) -> None:
    """Of a form that is read; another one is refused."""
    asked = Options(quantize="none")
    one, adapter = telling(READ["fp8"](), tmp_path / "base", file), q_and_v(tmp_path / "adapter")
    merged = merge_folders(one, adapter, tmp_path / "merged", asked)
    assert not (merged / file).exists()
    plan = plan_folders(one, adapter, asked)
    report = proven(one, adapter, merged, plan)
    assert report.verdict == "verified", table(report)
    (merged / file).write_bytes((one / file).read_bytes())
    report = proven(one, adapter, merged, plan)
    assert report.verdict == "not-verified"
    assert f"{file} tells of a form that the weights are not stored in" in named(report, "config").why
    other = telling(UNREAD[TOLD[file]](), tmp_path / "other", file)
    assert [refusal.code for refusal in plan_folders(other, adapter, asked).refusals] == ["quantised-base"]


@pytest.mark.parametrize("file", TOLD)
def test_a_form_that_such_a_file_alone_tells_of_is_refused_and_beside_plain_weights_it_is_a_leftover(
    tmp_path: Path, file: str
) -> None:
    packed_base, adapter = UNREAD[TOLD[file]](), q_and_v(tmp_path / "adapter")
    one = telling(Base(tensors=packed_base.tensors, config=LLAMA), tmp_path / "base", file)
    (refusal,) = plan_folders(one, adapter).refusals
    assert (refusal.code, refusal.reason.split()[0]) == ("quantised-base", file)
    bare = telling(Base(tensors=plain(), config=LLAMA), tmp_path / "bare", file)
    merged = merge_folders(bare, adapter, tmp_path / "merged")
    assert not (merged / file).exists()


def test_the_proof_misses_a_changed_byte_of_a_form_that_it_cannot_read(tmp_path: Path) -> None:
    base = UNREAD["gptq"]()
    one, adapter = cut(base, tmp_path / "base", [sorted(base.tensors)]), q_and_v(tmp_path / "adapter")
    merged = merge_folders(one, adapter, tmp_path / "merged")
    path = merged / "model-00001-of-00001.safetensors"
    tensors = load_file(path)
    tensors[f"{LAYER}mlp.up_proj.qweight"][0, 0] ^= 1
    save_file(tensors, path, metadata={"format": "pt"})
    report = proven(one, adapter, merged, plan_folders(one, adapter))
    assert report.verdict == "not-verified"
    assert named(report, "untouched").status == "fail"


def test_a_fingerprint_of_before_is_the_same(tmp_path: Path) -> None:
    """Of a merge that dequantises, and of a plain one: none by name, and by default."""
    base, bare = READ["fp8"](), Base(tensors=plain(), config=LLAMA)
    touching = lora(tmp_path / "adapter", "mlp.up_proj")
    for name, each in (("fp8", base), ("bare", bare)):
        one = cut(each, tmp_path / name, [sorted(each.tensors)])
        prints = {plan_folders(one, touching, asked).fingerprint for asked in (Options(), Options(quantize="none"))}
        assert len(prints) == 1


@pytest.mark.parametrize("name", ["nf4", "fp4", "int8", "fp8"])
def test_half_of_a_packed_base_is_written_in_its_own_form_and_the_other_half_stays(tmp_path: Path, name: str) -> None:
    base = packed(name)
    one, adapter = cut(base, tmp_path / "base", [sorted(base.tensors)]), q_and_v(tmp_path / "adapter")
    plan = plan_folders(one, adapter, Options(quantize="same"))
    assert dict(plan.tensors)["merged"] == 2
    merged = merge_folders(one, adapter, tmp_path / "merged", Options(quantize="same"))
    before, after = bytes_of(one, exact=False), bytes_of(merged)
    assert before.keys() == after.keys()
    changed = [key for key in before if before[key] != after[key]]
    assert {key.split("_proj")[0].rpartition(".")[2] for key in changed} == {"q", "v"}
    assert (merged / "config.json").read_bytes() == (one / "config.json").read_bytes()
    report = proven(one, adapter, merged, plan)
    assert report.verdict == "verified", table(report)
    assert "5 weights are the base's, byte for byte" in named(report, "quantised").why


def test_blocks_of_another_size_without_double_quantisation_keep_both(tmp_path: Path) -> None:
    tensors: Tensors = {}
    for key, weight in plain().items():
        if key.startswith(LAYER) and weight.dim() == 2:
            codes, state = functional.quantize_4bit(weight, blocksize=128, quant_type="nf4", compress_statistics=False)
            tensors |= {key: codes, **{f"{key}.{part}": value for part, value in state.as_dict(packed=True).items()}}
        else:
            tensors[key] = weight
    base = Base(tensors=tensors, config=packed("nf4").config)
    one, adapter = cut(base, tmp_path / "base", [sorted(tensors)]), q_and_v(tmp_path / "adapter")
    plan = plan_folders(one, adapter, Options(quantize="same"))
    merged = merge_folders(one, adapter, tmp_path / "merged", Options(quantize="same"))
    assert bytes_of(one, exact=False).keys() == bytes_of(merged).keys()
    report = proven(one, adapter, merged, plan)
    assert report.verdict == "verified", table(report)


def test_other_blocks_than_the_bases_are_caught(tmp_path: Path) -> None:
    base = packed("nf4")
    one, adapter = cut(base, tmp_path / "base", [sorted(base.tensors)]), q_and_v(tmp_path / "adapter")
    plan = plan_folders(one, adapter, Options(quantize="same"))
    merged = merge_folders(one, adapter, tmp_path / "merged", Options(quantize="same"))
    path = merged / "model-00001-of-00001.safetensors"
    tensors = load_file(path)
    key = TOUCHED[0]
    state = {name.removeprefix(f"{key}."): value for name, value in tensors.items() if name.startswith(f"{key}.")}
    meant = functional.dequantize_4bit(tensors[key], functional.QuantState.from_dict(state, device=torch.device("cpu")))
    codes, other = functional.quantize_4bit(meant.float(), blocksize=128, quant_type="nf4", compress_statistics=True)
    tensors |= {key: codes, **{f"{key}.{part}": value for part, value in other.as_dict(packed=True).items()}}
    save_file(tensors, path, metadata={"format": "pt"})
    found = named(proven(one, adapter, merged, plan), "quantised")
    assert found.status == "fail"
    assert "blocksize" in found.why


def floats_of_eight_bits(scales: torch.dtype, block: int | None) -> Base:
    """compressed-tensors' float-quantized: a scale for each row, or for each square block."""
    strategy = {"strategy": "channel"} if block is None else {"strategy": "block", "block_structure": [block, block]}
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, **strategy}
    said = {
        "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}, "ignore": ["lm_head"],
    }  # fmt: skip

    def form(key: str, weight: torch.Tensor) -> Tensors:
        high, wide = (1, weight.shape[1]) if block is None else (block, block)
        cut_up = weight.float().reshape(weight.shape[0] // high, high, weight.shape[1] // wide, wide)
        scale = (cut_up.abs().amax((1, 3)) / 448).to(scales)
        spread = scale.float().repeat_interleave(high, 0).repeat_interleave(wide, 1)
        codes = (weight.float() / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        return {key: codes, key.replace("weight", "weight_scale"): scale}

    tensors: Tensors = {}
    for key, weight in plain().items():
        tensors |= form(key, weight) if key.startswith(LAYER) and weight.dim() == 2 else {key: weight}
    return Base(tensors=tensors, config={**LLAMA, "quantization_config": said})


@pytest.mark.parametrize("scales", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("block", [None, 32])
def test_floats_of_eight_bits_are_written_under_scales_of_the_bases_dtype(
    tmp_path: Path, scales: torch.dtype, block: int | None
) -> None:
    base = floats_of_eight_bits(scales, block)
    one, adapter = cut(base, tmp_path / "base", [sorted(base.tensors)]), q_and_v(tmp_path / "adapter")
    plan = plan_folders(one, adapter, Options(quantize="same"))
    merged = merge_folders(one, adapter, tmp_path / "merged", Options(quantize="same"))
    report = proven(one, adapter, merged, plan)
    assert report.verdict == "verified", table(report)
    tensors = load_file(merged / "model-00001-of-00001.safetensors")
    key = f"{LAYER}self_attn.q_proj.weight"
    assert tensors[f"{key}_scale"].dtype == scales
    codes = tensors[key].view(torch.uint8)
    codes[0, 0] ^= 1
    save_file(tensors, merged / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    assert named(proven(one, adapter, merged, plan), "quantised").status == "fail"
