"""Whatever PEFT can merge is merged to what PEFT's *unmerged* model computes; and what cannot be is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from bot.checks.elementwise.rounding import round_once
from bot.checks.expected.probed_layers import ProbedLayers
from bot.checks.expected.probing import NoWeight
from bot.engines.peft_layers import PeftLayers, write_peft_ops
from bot.engines.phantom import is_phantom, phantom
from bot.errors import Refused
from bot.records import Json, PeftMerge
from tests.oracle.peft_cases import CASES, WEIGHTS, Case, adapter, base, merges

# PEFT decomposes or transforms in float32 even in a float64 model: there the model itself is that far from exact.
FLOAT32_INSIDE = {"C3A": 1e-5, "DEFT": 1e-5, "FOURIERFT": 1e-5, "FROD": 1e-5, "OSF": 1e-3, "LORA": 1e-4}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, torch.dtype], Path]:
    torch.set_num_threads(1)
    folders: dict[tuple[str, torch.dtype], Path] = {}
    for name in ("llama", "gpt2", "bert", "vit", "t5"):
        for dtype in (torch.bfloat16, torch.float32):
            folders[name, dtype] = tmp_path_factory.mktemp(f"{name}-{dtype}")
            base(name, folders[name, dtype], dtype)
    return folders


def loaded(case: Case, folder: Path) -> PreTrainedModel:
    """The base as PEFT's users load it, in float32."""
    from tests.oracle.peft_cases import MODELS

    model: PreTrainedModel = type(MODELS[case.model][0]()).from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def made(case: Case, folder: Path, tmp_path: Path) -> tuple[Json, list[PeftMerge]]:
    config = adapter(case, loaded(case, folder), tmp_path)
    return config, merges(case, config, folder, tmp_path, loaded(case, folder))


def layers_of(folder: Path, adapter_folder: Path, config: Json, ops: list[PeftMerge]) -> PeftLayers:
    read = json.loads((folder / "config.json").read_text())
    return PeftLayers(base=folder, adapter=adapter_folder, config=read, adapter_config=config, ops=ops)


def unmerged(case: Case, folder: Path, adapter_folder: Path) -> Any:
    """PEFT's own unmerged model, in float64."""
    tuned = PeftModel.from_pretrained(loaded(case, folder), str(adapter_folder)).double().eval()
    for module in tuned.modules():
        if isinstance(module.__dict__.get("dtype"), torch.dtype):
            module.__dict__["dtype"] = torch.float64
    return tuned


def outputs(case: Case, model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 90, (2, 9), generator=generator)
    with torch.no_grad():
        if case.model == "vit":
            found = model(pixel_values=torch.randn(2, 4, 16, 16, generator=generator, dtype=torch.float64))
        elif case.model == "t5":
            found = model(input_ids=tokens, decoder_input_ids=tokens.flip(1))
        else:
            found = model(input_ids=tokens)
    logits: torch.Tensor = found.logits
    return logits


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_merged_model_computes_what_the_unmerged_one_does(
    case: Case, bases: dict[tuple[str, torch.dtype], Path], tmp_path: Path
) -> None:
    folder = bases[case.model, torch.bfloat16]
    config, ops = made(case, folder, tmp_path)
    layers = layers_of(folder, tmp_path, config, ops)
    tuned = unmerged(case, folder, tmp_path)
    wanted = outputs(case, tuned)
    with tuned.disable_adapter():
        plain = outputs(case, tuned)
    if case.method == "LORA" and config.get("init_lora_weights") != True:  # noqa: E712 (these move the base itself)
        plain = outputs(case, loaded(case, folder).double())
    model = loaded(case, folder).double()
    whole = {**load_file(tmp_path / "adapter_model.safetensors")}
    with torch.no_grad():
        for module in {op.module for op in ops}:
            for parameter, value in layers.merge(module).items():
                getattr(model.get_submodule(module), parameter).data = value
        for name, weight in model.named_parameters():  # what other ops do: whole tensors
            for key in (f"base_model.model.{name}", f"base_model.model.{name.replace('.bias', '.base_layer.bias')}"):
                if key in whole:
                    weight.data = whole[key].double()
    difference, effect = (wanted - outputs(case, model)).abs().max(), (wanted - plain).abs().max()
    assert effect > 1e-6, "an adapter without an effect would prove nothing"
    assert difference <= FLOAT32_INSIDE.get(case.method, 1e-9) * max(1.0, float(effect))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_written_element_is_what_the_unmerged_layer_says_rounded_once(
    case: Case, bases: dict[tuple[str, torch.dtype], Path], tmp_path: Path
) -> None:
    folder = bases[case.model, torch.bfloat16]
    config, ops = made(case, folder, tmp_path)
    out = shutil.copy(folder / WEIGHTS, tmp_path / "merged.safetensors")
    descriptor = os.open(out, os.O_RDWR)
    moved: list[int] = []
    try:
        write_peft_ops(ops, layers_of(folder, tmp_path, config, ops), lambda _: descriptor, moved.append)
    finally:
        os.close(descriptor)
    assert sum(moved) == sum(op.target.stop - op.target.start for op in ops)
    asked = asking(case, config, folder, tmp_path)
    before, after = load_file(folder / WEIGHTS), load_file(out)
    written = {op.target.key: f"{op.module}.{op.parameter}" for op in ops}
    for key, found in after.items():
        if key not in written:
            assert torch.equal(found, before[key]), key
            continue
        exact = asked.exact(written[key])
        slack = asked.slack * float(exact.abs().max())
        low, high = round_once(exact - slack, torch.bfloat16), round_once(exact + slack, torch.bfloat16)
        assert bool(((low <= found) & (found <= high)).all()), key
    declared = set(written.values())
    for name, _ in asked.parameters():  # and what the plan leaves alone is left alone by the layer too
        if name not in declared:
            assert torch.allclose(
                asked.exact(name), loaded(case, folder).state_dict()[name].double(), rtol=0, atol=1e-12
            )


def asking(case: Case, config: Json, folder: Path, adapter_folder: Path) -> ProbedLayers:
    from bot.adapters.method_modules import modules_of

    source = loaded(case, folder)
    with torch.device("meta"):
        empty = type(source)(source.config)
    path = adapter_folder / "adapter_model.safetensors"
    keys = set(load_file(path))
    return ProbedLayers(empty, path, config, keys - set(modules_of(config, keys).whole), source.state_dict().get)


@pytest.mark.parametrize("method", ["IA3", "OFT", "VERA", "GLORA"])
def test_a_float32_base_stays_float32(method: str, bases: dict[tuple[str, torch.dtype], Path], tmp_path: Path) -> None:
    case, folder = Case(method, "llama"), bases["llama", torch.float32]
    config, ops = made(case, folder, tmp_path)
    out = shutil.copy(folder / WEIGHTS, tmp_path / "merged.safetensors")
    descriptor = os.open(out, os.O_RDWR)
    try:
        write_peft_ops(ops, layers_of(folder, tmp_path, config, ops), lambda _: descriptor, lambda _: None)
    finally:
        os.close(descriptor)
    asked, after = asking(case, config, folder, tmp_path), load_file(out)
    for op in ops:
        assert torch.allclose(
            after[op.target.key].double(), asked.exact(f"{op.module}.{op.parameter}"), rtol=1e-7, atol=1e-9
        )


def test_an_adalora_whose_ranks_were_cut_in_training(
    bases: dict[tuple[str, torch.dtype], Path], tmp_path: Path
) -> None:
    """Its tensors are smaller than its config's first rank says, some of them empty; `rank_pattern` says which."""
    folder, case = bases["llama", torch.bfloat16], Case("ADALORA", "llama")
    cut = AdaLoraConfig(
        init_r=6, target_r=3, tinit=2, tfinal=4, total_step=12, deltaT=1, target_modules=["q_proj", "down_proj"]
    )
    torch.manual_seed(0)
    tuned = get_peft_model(loaded(case, folder), cut)
    optimizer = torch.optim.AdamW([one for one in tuned.parameters() if one.requires_grad], lr=5e-2)
    tokens = torch.randint(3, 90, (4, 12))
    for step in range(12):
        tuned(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        tuned.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    tuned.save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    kept = {sum(ranks) for ranks in config["rank_pattern"].values()}
    assert min(kept) < 6
    ops = merges(case, config, folder, tmp_path, loaded(case, folder))
    layers, asked = layers_of(folder, tmp_path, config, ops), asking(case, config, folder, tmp_path)
    reference = unmerged(case, folder, tmp_path)
    for op in ops:
        found = layers.merge(op.module)[op.parameter]
        assert torch.allclose(found, asked.exact(f"{op.module}.{op.parameter}"), rtol=0, atol=1e-13)
        layer = reference.get_submodule(f"base_model.model.{op.module}")
        assert torch.allclose(found, layer.get_base_layer().weight + layer.get_delta_weight("default"), atol=1e-9)


# --- faults -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ia3(bases: dict[tuple[str, torch.dtype], Path], tmp_path: Path) -> tuple[Path, Path, Json, list[PeftMerge]]:
    folder = bases["llama", torch.bfloat16]
    config, ops = made(Case("IA3", "llama"), folder, tmp_path)
    return folder, tmp_path, config, ops


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    path = folder / "adapter_model.safetensors"
    found: dict[str, Any] = {**load_file(path), **tensors}
    save_file({key: value for key, value in found.items() if value is not None}, path)


def test_a_tensor_that_no_layer_takes_is_refused(ia3: tuple[Path, Path, Json, list[PeftMerge]]) -> None:
    folder, own, config, ops = ia3
    change(own, **{"base_model.model.model.layers.9.self_attn.q_proj.ia3_l": torch.ones(32, 1)})
    with pytest.raises(Refused, match=r"used by no layer, e\.g\. .*layers\.9"):
        layers_of(folder, own, config, ops)


def test_a_tensor_that_is_missing_is_refused(ia3: tuple[Path, Path, Json, list[PeftMerge]]) -> None:
    folder, own, config, ops = ia3
    change(own, **{"base_model.model.model.layers.1.self_attn.q_proj.ia3_l": None})
    with pytest.raises(Refused, match=r"lacks 1 tensors .*layers\.1\.self_attn\.q_proj"):
        layers_of(folder, own, config, ops)


def test_a_tensor_of_another_shape_is_refused(ia3: tuple[Path, Path, Json, list[PeftMerge]]) -> None:
    folder, own, config, ops = ia3
    change(own, **{"base_model.model.model.layers.1.self_attn.q_proj.ia3_l": torch.ones(31, 1)})
    with pytest.raises(Refused, match="do not fit"):
        layers_of(folder, own, config, ops)


def test_a_nan_in_the_adapter_is_refused(ia3: tuple[Path, Path, Json, list[PeftMerge]]) -> None:
    folder, own, config, ops = ia3
    change(own, **{"base_model.model.model.layers.1.self_attn.q_proj.ia3_l": torch.full((32, 1), torch.nan)})
    with pytest.raises(Refused, match="NaN"):
        layers_of(folder, own, config, ops)


def test_a_module_that_the_plan_forgot_is_refused(ia3: tuple[Path, Path, Json, list[PeftMerge]]) -> None:
    folder, own, config, ops = ia3
    with pytest.raises(Refused, match="disagree"):
        layers_of(folder, own, config, [op for op in ops if op.module != "model.layers.0.mlp.down_proj"])


def test_a_weight_that_the_plan_forgot_shows_as_nan(bases: dict[tuple[str, torch.dtype], Path], tmp_path: Path) -> None:
    folder = bases["llama", torch.bfloat16]
    config, ops = made(Case("GLORA", "llama"), folder, tmp_path)  # its bias is made of the weight, too
    module = "model.layers.0.self_attn.q_proj"
    kept = [op for op in ops if (op.module, op.parameter) != (module, "weight")]
    with pytest.raises(Refused, match="NaN"):
        layers_of(folder, tmp_path, config, kept).merge(module)


def test_a_bias_that_the_plan_forgot_is_noticed(ia3: tuple[Path, Path, Json, list[PeftMerge]]) -> None:
    folder, own, config, ops = ia3
    module = "model.layers.0.self_attn.q_proj"
    kept = [op for op in ops if (op.module, op.parameter) != (module, "bias")]
    with pytest.raises(Refused, match="something else"):
        layers_of(folder, own, config, kept).merge(module)


def test_a_convolution_that_pefts_merge_gets_wrong_is_refused(
    bases: dict[tuple[str, torch.dtype], Path], tmp_path: Path
) -> None:
    folder, case = bases["vit", torch.bfloat16], Case("OFT", "vit")
    config, ops = made(case, folder, tmp_path)
    module = "vit.embeddings.patch_embeddings.projection"
    with pytest.raises(Refused, match="something else than its unmerged one"):
        layers_of(folder, tmp_path, config, ops).merge(module)
    with pytest.raises(NoWeight, match="no convolution"):
        asking(case, config, folder, tmp_path).exact(f"{module}.weight")


def test_a_write_into_a_phantom_raises_or_shows() -> None:
    with pytest.raises(RuntimeError, match="single memory location"):
        phantom((3, 4)).add_(1.0)
    with pytest.raises(RuntimeError, match="single memory location"):
        phantom((3, 4)).copy_(torch.ones(3, 4))
    zeroed = phantom((3, 4))
    zeroed.zero_()  # torch lets this one pass
    assert not is_phantom(zeroed)
    assert is_phantom(phantom((3, 4)))


def test_settings_that_reach_importlib_never_reach_peft(ia3: tuple[Path, Path, Json, list[PeftMerge]]) -> None:
    folder, own, config, ops = ia3
    poisoned = {
        **config,
        "auto_mapping": {"base_model_class": "os.system", "parent_library": "antigravity"},
        "megatron_core": "antigravity",
        "runtime_config": {"ephemeral_gpu_offload": True},
    }
    sys.modules.pop("antigravity", None)
    layers_of(folder, own, poisoned, ops)
    assert "antigravity" not in sys.modules


def test_the_skeleton_of_a_seven_billion_model_takes_no_memory(tmp_path: Path) -> None:
    """A 7B llama with an IA³ adapter on every projection is built and loaded; the weights would be 27 GB."""
    script = textwrap.dedent("""
        import json, sys, torch
        from pathlib import Path
        from safetensors.torch import save_file
        from transformers import LlamaConfig
        from bot.engines.peft_layers import PeftLayers
        from bot.records import PeftMerge, Stored
        folder = Path(sys.argv[1])
        config = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                             num_attention_heads=32, architectures=["LlamaForCausalLM"])
        config.save_pretrained(folder)
        targets = ["k_proj", "v_proj", "down_proj"]
        said = {"peft_type": "IA3", "target_modules": targets, "feedforward_modules": ["down_proj"]}
        tensors, ops = {}, []
        for layer in range(32):
            for name in targets:
                inner = "mlp" if name == "down_proj" else "self_attn"
                module = f"model.layers.{layer}.{inner}.{name}"
                shape = (1, 11008) if name == "down_proj" else (4096, 1)
                tensors[f"base_model.model.{module}.ia3_l"] = torch.ones(shape)
                stored = Stored(key=module, file="none", dtype="BF16", shape=(), start=0, stop=0)
                ops.append(PeftMerge(source=stored, target=stored, module=module, parameter="weight"))
        save_file(tensors, folder / "adapter_model.safetensors")
        def peak():  # KiB; getrusage would count what the process that started this one had
            return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
        imported = peak()
        PeftLayers(base=folder, adapter=folder, config=json.loads((folder / "config.json").read_text()),
                   adapter_config=said, ops=ops)
        print(peak() - imported)
    """)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) < 2**18  # KiB beside the libraries; 114 MB on 2026-11-29
