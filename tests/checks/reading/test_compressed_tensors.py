"""The verifier reads compressed-tensors' weights without the package as the package decompresses them, bit for bit, and takes them for
what the package's own matching takes them for. What it does not read itself, the package reads."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from safetensors.torch import load_file, save_file

from bot.checks.reading import compressed_numbers, compressed_tensors
from bot.checks.reading.checkpoint import PackedWeight, read_checkpoint
from bot.checks.reading.compressed_schemes import Unusual, read_groups, target_of
from bot.checks.reading.quantised import as_model
from bot.errors import Refused
from tests.faults import quantised
from tests.faults.quantised import Form, Tensors
from tests.faults.test_plain_names_are_the_models import VERIFY

MODULE = "model.layers.0.self_attn.q_proj"
KEY = f"{MODULE}.weight"
SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def arguments(strategy: str, **more: Any) -> dict[str, Any]:
    """The `weights` of a group: 16 columns to a group, blocks of 32 × 16."""
    own = {"group": {"group_size": 16}, "block": {"block_structure": [32, 16]}}.get(strategy, {})
    return {"num_bits": 8, "type": "int", "symmetric": True, "strategy": strategy, **own, **more}


def config(form: str | None, weights: Any, **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group},
            "ignore": ["lm_head"], "quantization_status": "compressed", **more}  # fmt: skip


def scales(strategy: str, rows: int, columns: int) -> torch.Tensor:
    shape = {
        "tensor": (1,),
        "channel": (rows, 1),
        "group": (rows, columns // 16),
        "block": (-(-rows // 32), -(-columns // 16)),
    }
    return torch.rand(shape[strategy]) * 0.02 + 0.003


def read(folder: Path, parts: Tensors, said: dict[str, Any]) -> PackedWeight:
    folder.mkdir(parents=True, exist_ok=True)
    stored = {f"{MODULE}.{name}": tensor.contiguous() for name, tensor in parts.items()}
    save_file(stored, folder / "model.safetensors")
    model = as_model(read_checkpoint(folder), {"model_type": "llama", "quantization_config": said}, "base")
    packed = model.tensors[KEY].packed
    assert list(model.tensors) == [KEY]
    assert packed is not None
    return packed


def by_package(parts: Tensors, said: dict[str, Any]) -> torch.Tensor:
    """Its decompression, of scales in float32."""
    (scheme,) = QuantizationConfig.model_validate(said).config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(scheme.format or said["format"])
    return compressor.decompress({**parts, "weight_scale": parts["weight_scale"].float()}, scheme)["weight"].float()


def same(packed: PackedWeight, wanted: torch.Tensor) -> None:
    assert packed.shape == tuple(wanted.shape)
    np.testing.assert_array_equal(
        packed.numbers().view(np.uint32), wanted.contiguous().reshape(-1).numpy().view(np.uint32)
    )


def by_own_rules(packed: PackedWeight) -> bool:
    return "scheme" not in packed.settings


def check(folder: Path, parts: Tensors, said: dict[str, Any]) -> None:
    packed = read(folder, parts, said)
    assert by_own_rules(packed)
    same(packed, by_package(parts, said))


def words(rows: int, columns: int, bits: int) -> torch.Tensor:
    """Any bits at all, those behind the last number too."""
    return torch.randint(-(2**31), 2**31, (rows, -(-columns * bits // 32)), dtype=torch.int64).to(torch.int32)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("strategy", ["tensor", "channel", "group"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_integers(tmp_path: Path, bits: int, strategy: str, symmetric: bool) -> None:
    said = config("pack-quantized", arguments(strategy, num_bits=bits, symmetric=symmetric))
    for at, (rows, columns) in enumerate([(24, 64), (17, 48), (45, 80), (13, 45), (1, 1)]):
        if strategy == "group" and columns % 16:
            continue
        scale = scales(strategy, rows, columns).to(SCALE_DTYPES[at % 3])
        parts = {"weight_packed": words(rows, columns, bits), "weight_scale": scale,
                 "weight_shape": torch.tensor([rows, columns], dtype=(torch.int64, torch.int32)[at % 2])}  # fmt: skip
        if not symmetric:
            packed_zeros = words(scale.shape[-1], rows, bits).T
            parts["weight_zero_point"] = packed_zeros if strategy != "tensor" else torch.tensor([3], dtype=torch.int8)
        check(tmp_path / str(at), parts, said)


def test_integers_that_lie_across_bytes_are_unpacked_strip_by_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    held = words(40, 50, 5).numpy()
    whole = compressed_numbers.unpacked(held, 5, 50)
    monkeypatch.setattr(compressed_numbers, "STRIP", 3 * 64)
    np.testing.assert_array_equal(compressed_numbers.unpacked(held, 5, 50), whole)


@pytest.mark.parametrize("zero", [None, torch.int8, torch.uint8, torch.int32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("strategy", ["tensor", "channel", "group", "block"])
@pytest.mark.parametrize("form", ["int-quantized", "naive-quantized"])
def test_integers_one_to_a_byte(tmp_path: Path, form: str, strategy: str, zero: torch.dtype | None) -> None:
    said = config(form, arguments(strategy, symmetric=zero is None))
    for at, (rows, columns) in enumerate([(64, 48), (45, 80), (16, 16)]):
        scale = scales(strategy, rows, columns)
        parts = {
            "weight": torch.randint(-128, 128, (rows, columns), dtype=torch.int8),
            "weight_scale": scale.to(SCALE_DTYPES[at]),
        }
        if zero is not None:
            shape = (1,) if at == 2 else scale.shape
            parts["weight_zero_point"] = torch.randint(0, 100, shape).to(zero)
        check(tmp_path / str(at), parts, said)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("strategy", ["tensor", "channel", "group", "block"])
@pytest.mark.parametrize("form", ["float-quantized", "naive-quantized"])
def test_floats_of_eight_bits(tmp_path: Path, form: str, strategy: str, symmetric: bool) -> None:
    """Every number, in blocks that end outside the matrix too; a tensor's scale may have any number of axes."""
    said = config(form, arguments(strategy, type="float", symmetric=symmetric))
    every = torch.tensor([byte for byte in range(256) if byte & 127 != 127], dtype=torch.uint8)
    for at, (rows, columns) in enumerate([(64, 48), (70, 80), (45, 16)]):
        codes = every[torch.arange(rows * columns) % len(every)].reshape(rows, columns).view(torch.float8_e4m3fn)
        scale = scales(strategy, rows, columns).to(SCALE_DTYPES[at])
        if strategy == "tensor":
            scale = scale.reshape(((), (1,), (1, 1))[at])
        parts = {"weight": codes, "weight_scale": scale}
        if not symmetric:
            parts["weight_zero_point"] = torch.randn(scale.shape).to(torch.float8_e4m3fn)
        check(tmp_path / str(at), parts, said)


@pytest.mark.parametrize("form", ["pack-quantized", "int-quantized"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("order", ["group", "dynamic"])
def test_columns_in_another_order_are_of_the_group_that_g_idx_names(
    tmp_path: Path, order: str, symmetric: bool, form: str
) -> None:
    """Today's package does not read them: it is given the columns in the order of their groups, and they are put back."""
    rows, columns = 45, 80
    said = config(form, arguments("group", num_bits=8, symmetric=symmetric))
    parts = {
        "weight": torch.randint(-128, 128, (rows, columns), dtype=torch.int8),
        "weight_scale": scales("group", rows, columns),
    }
    if not symmetric:
        parts["weight_zero_point"] = torch.randint(-128, 128, (rows, columns // 16), dtype=torch.int8)
    owners = torch.arange(columns).div(16, rounding_mode="floor")[torch.randperm(columns)].to(torch.int32)
    in_order = torch.argsort(owners, stable=True)
    wanted = torch.empty(rows, columns)
    plain = config("int-quantized", arguments("group", symmetric=symmetric))
    wanted[:, in_order] = by_package({**parts, "weight": parts["weight"][:, in_order]}, plain)
    if form == "pack-quantized":
        offset = (parts.pop("weight").to(torch.int16) + 128).to(torch.uint8).contiguous()
        parts |= {"weight_packed": offset.view(torch.int32), "weight_shape": torch.tensor([rows, columns])}
        if not symmetric:
            filled = torch.nn.functional.pad(
                (parts["weight_zero_point"].T.to(torch.int16) + 128).to(torch.uint8), (0, -rows % 4)
            )
            parts["weight_zero_point"] = filled.contiguous().view(torch.int32).T
    said["config_groups"]["group_0"]["weights"]["actorder"] = order
    packed = read(tmp_path, {**parts, "weight_g_idx": owners}, said)
    same(packed, wanted)


@pytest.mark.parametrize("owners", [None, [-1] * 80, [0] * 80, [5] * 80], ids=str)
def test_an_order_of_columns_that_is_not_there_or_names_no_groups_is_refused(
    tmp_path: Path, owners: list[int] | None
) -> None:
    said = config("int-quantized", arguments("group", actorder="group"))
    parts = {"weight": torch.ones(45, 80, dtype=torch.int8), "weight_scale": scales("group", 45, 80)}
    if owners is not None:
        parts["weight_g_idx"] = torch.tensor(owners, dtype=torch.int32)
    with pytest.raises(Refused, match="actorder"):
        read(tmp_path, parts, said)


def test_groups_say_the_shape_where_it_is_not_stored(tmp_path: Path) -> None:
    said = config("pack-quantized", arguments("group", num_bits=3))
    parts = {"weight_packed": words(24, 48, 3), "weight_scale": scales("group", 24, 48)}
    packed = read(tmp_path, parts, said)
    assert by_own_rules(packed)
    same(packed, by_package({**parts, "weight_shape": torch.tensor([24, 48])}, said))


# --- which group a module is of -----------------------------------------------------------------------------------------------

TARGETS = [
    ["Linear"],
    ["Linear", "Embedding"],
    ["Embedding", "Module"],
    ["re:.*proj", "Linear"],
    ["re:.*mlp.*", MODULE, "re:.*q_proj$"],
    ["re:model", "re:.*self_attn"],
    ["re:layers.*"],
    ["re:.*[qkv]_proj", "re:.*experts\\.[0-9]+\\..*", "model.embed_tokens"],
    ["re:q_proj$", "Conv1d", "LinearBase"],
    ["re:(?P<front>.*)layers\\.0\\.", "Module", "Linear"],
]
MODULES = [MODULE, "model.layers.1.mlp.up_proj", "model.embed_tokens", "lm_head", "model.layers.0.mlp.experts.12.down_proj",
           "visual.patch_embed", "model.embedder.proj", "transformer.h.0.mlp.c_fc"]  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_of_the_group_that_the_package_matches(module: str) -> None:
    """By two groups, in both orders; the bits say which."""
    for first, second in itertools.product(TARGETS, repeat=2):
        groups = {name: {"targets": targets, "weights": arguments("channel", num_bits=bits), "format": "int-quantized"}
                  for name, targets, bits in (("a", first, 4), ("b", second, 8))}  # fmt: skip
        said = config("mixed-precision", None, config_groups=groups)
        theirs = compressed_tensors.scheme_of(module, compressed_tensors.configured(said))
        own = read_groups(said)
        target = target_of(module, own)
        assert (target is None) == (theirs is None), (first, second)
        if target is not None:
            packing = own[target]
            assert packing is not None
            assert packing.bits == theirs.weights.num_bits, (first, second)


CHOICES: dict[str, list[Any]] = {
    "strategy": [None, "tensor", "channel", "group", "block", "token", "tensor_group", "CHANNEL"],
    "group_size": [None, -1, 0, 16, "16"],
    "block_structure": [None, [32, 16], [32], "32x16", [0, 16]],
    "dynamic": [False, True, "local"],
    "actorder": [None, "weight", "static", False, True, "other"],
}


def test_the_arguments_of_weights_mean_what_the_package_makes_of_them() -> None:
    """Whatever is read here, the package reads, as the same; and it does read what the package writes."""
    read_here = 0
    for values in itertools.product(*CHOICES.values()):
        weights = {"num_bits": 8, "type": "int", **dict(zip(CHOICES, values, strict=True))}
        packing = read_groups(config("int-quantized", weights))["Linear"]
        if packing is None:
            continue
        read_here += 1
        args = QuantizationArgs.model_validate(weights)
        block = tuple(args.block_structure) if args.block_structure else None
        assert packing.strategy == getattr(args.strategy, "value", args.strategy)
        assert (packing.group_size, packing.block) == (max(0, args.group_size or 0), block)
        (group,) = json.loads(written(args))["config_groups"].values()
        again = {**config("int-quantized", None), "config_groups": {"group_0": group}}
        assert read_groups(again) == {"Linear": packing}
    assert read_here >= 4 * 6


def written(args: QuantizationArgs) -> str:
    """A config as the package saves it."""
    inputs = QuantizationArgs(num_bits=8, strategy="token", dynamic=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=inputs, format="int-quantized")
    whole = QuantizationConfig(
        config_groups={"group_0": scheme}, format="int-quantized", quantization_status="compressed"
    )
    return whole.model_dump_json()


@pytest.mark.parametrize(
    "change",
    [
        {"transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}},
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        {"config_groups": {"W8A8": ["Linear"]}},
        {"config_groups": {"a": {"targets": "Linear", "weights": arguments("channel")}}},
        {"config_groups": {"a": {"targets": ["Linear"], "weights": arguments("channel"), "more": 1}}},
        {"config_groups": {"a": {"targets": ["core:proj"], "weights": arguments("channel")}}},
        {"config_groups": None},
        {"ignore": "lm_head"},
    ],
    ids=str,
)
def test_an_unusual_config_is_left_to_the_package(change: dict[str, Any]) -> None:
    with pytest.raises(Unusual):
        read_groups({**config("int-quantized", arguments("channel")), **change})


# --- what the package reads ---------------------------------------------------------------------------------------------------

BYTES = {"weight": torch.ones(64, 48, dtype=torch.int8) * 5, "weight_scale": torch.full((64, 1), 0.25)}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"config_groups": {"W8A8": ["Linear"]}, "format": "int-quantized"}, {}),
        ({"config_groups": {"a": {"targets": ["Linear"], "weights": arguments("CHANNEL")}}}, {}),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, {}),
        ({"format": "dense"}, {}),
        ({}, {"weight_scale": torch.full((48,), 0.25)}),
        ({}, {"weight": torch.ones(64, 48, dtype=torch.int16) * 700}),
        ({}, {"weight_g_idx": torch.zeros(48, dtype=torch.int32)}),
    ],
    ids=["preset", "spelling", "sparsity", "dense", "one axis", "int16", "g_idx without an order"],
)
def test_what_is_unusual_is_read_by_the_package(tmp_path: Path, change: dict[str, Any], parts: Tensors) -> None:
    said = {**config("int-quantized", arguments("channel")), **change}
    if "W8A8" in said["config_groups"]:
        parts = {"weight_scale": torch.full((64, 1), 0.25)}
    packed = read(tmp_path, {**BYTES, **parts}, said)
    assert not by_own_rules(packed)
    known = {name: value for name, value in said.items() if name != "sparsity_config"}
    same(packed, by_package({**BYTES, **parts}, known))


def test_mxfp8_is_read_by_the_package(tmp_path: Path) -> None:
    codes = torch.randn(8, 64).to(torch.float8_e4m3fn)
    parts = {"weight": codes, "weight_scale": torch.randint(110, 140, (8, 2), dtype=torch.uint8)}
    packed = read(tmp_path, parts, config("mxfp8-quantized", arguments("group", type="float", group_size=32)))
    assert not by_own_rules(packed)
    powers = torch.ldexp(torch.ones(8, 2), parts["weight_scale"].int() - 127)
    same(packed, codes.float() * powers.repeat_interleave(32, 1))


@pytest.mark.parametrize("form", ["mxfp4-pack-quantized", "nvfp4-pack-quantized"])
def test_floats_of_four_bits_are_refused(tmp_path: Path, form: str) -> None:
    """They have no shape beside them, by which the package would be asked."""
    weights = arguments("group", num_bits=4, type="float", group_size=32)
    parts = {"weight_packed": torch.ones(8, 32, dtype=torch.uint8), "weight_scale": torch.ones(8, 2, dtype=torch.uint8)}
    with pytest.raises(Refused, match="has no weight_shape"):
        read(tmp_path, parts, config(form, weights))


@pytest.mark.parametrize(
    ("change", "parts", "word"),
    [
        (
            {"config_groups": {"a": {"targets": ["re:.*mlp"], "weights": arguments("channel")}}},
            BYTES,
            "no config group names it",
        ),
        ({"config_groups": {"a": {"targets": ["Linear"], "weights": None}}}, BYTES, "leaves weights alone"),
        (
            {"config_groups": {"a": {"targets": ["re:(("], "weights": arguments("channel")}}},
            BYTES,
            "unterminated|missing",
        ),
        (
            {"config_groups": {"a": {"targets": ["Linear"], "weights": arguments("channel", num_bits="x")}}},
            BYTES,
            "num_bits",
        ),
        ({}, {"weight_packed": torch.ones(4, 4, dtype=torch.int32)}, "has no scales"),
        (
            {},
            {"weight_packed": torch.ones(4, 4, dtype=torch.int32), "weight_scale": torch.ones(4, 1)},
            "has no weight_shape",
        ),
    ],
    ids=["no group", "no weights", "no pattern", "no number", "no scales", "no shape"],
)
def test_what_the_config_does_not_explain_is_refused(
    tmp_path: Path, change: dict[str, Any], parts: Tensors, word: str
) -> None:
    with pytest.raises(Refused, match=word):
        read(tmp_path, parts, {**config("int-quantized", arguments("channel")), **change})


# --- a whole proof ------------------------------------------------------------------------------------------------------------


def form_of(name: str, **weights: Any) -> Form:
    """Stored by the package, with scales and zero points from the largest and smallest numbers."""
    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=name)
    compressor = BaseCompressor.get_value_from_registry(name)

    def pack(key: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        rows, columns = weight.shape
        high, wide = {"channel": (1, columns), "group": (1, 32), "block": (32, 32)}[str(weights["strategy"])]
        tiles = weight.float().reshape(rows // high, high, columns // wide, wide)
        largest = tiles.abs().amax(dim=(1, 3))
        parts = {"weight": weight.float(), "weight_scale": largest / (7 if args.num_bits == 4 else 127)}
        if not args.symmetric:
            parts["weight_zero_point"] = (torch.arange(largest.numel()).reshape(largest.shape) % 7 - 3).to(torch.int8)
        stored = compressor.compress(parts, scheme)
        module = key.removesuffix(".weight")
        return {f"{module}.{part}": value for part, value in stored.items()}, compressor.decompress(stored, scheme)[
            "weight"
        ]

    whole = QuantizationConfig(config_groups={"group_0": scheme}, format=name, quantization_status="compressed")
    return Form(pack=pack, said=json.loads(whole.model_dump_json()))


def mixed() -> Form:
    """Four bits for the MLP, eight for the attention."""
    four = form_of("pack-quantized", num_bits=4, strategy="group", group_size=32)
    eight = form_of("float-quantized", num_bits=8, type="float", strategy="channel")
    groups = {
        "a": {**four.said["config_groups"]["group_0"], "targets": ["re:.*mlp.*"]},
        "b": eight.said["config_groups"]["group_0"],
    }
    return Form(
        pack=lambda key, weight: (four if ".mlp." in key else eight).pack(key, weight),
        said={**four.said, "format": "mixed-precision", "config_groups": groups},
    )


WHOLE = {
    "w4a16": lambda: form_of("pack-quantized", num_bits=4, strategy="group", group_size=32),
    "w4a16-asymmetric": lambda: form_of("pack-quantized", num_bits=4, strategy="group", group_size=32, symmetric=False),
    "w8a8": lambda: form_of("int-quantized", num_bits=8, strategy="channel"),
    "fp8-block": lambda: form_of(
        "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[32, 32]
    ),
    "mixed-precision": mixed,
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_merge_into_such_a_base_is_proven_without_torch_and_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(quantised.FORMS, name, WHOLE[name])
    one = quantised.build(name, tmp_path)
    done = verified(one.base, one.adapter, one.merged)
    assert done == ["verified"]
    # And it is this base's numbers that it is held to: one code more or less is noticed.
    other = load_file(one.base / "model.safetensors")
    key = next(key for key in other if key.endswith(("q_proj.weight", "q_proj.weight_packed")))
    other[key].view(torch.uint8)[0, 0] ^= 1
    save_file(other, one.base / "model.safetensors", metadata={"format": "pt"})
    assert verified(one.base, one.adapter, one.merged)[0] == "not-verified"


def verified(*folders: Path) -> list[str]:
    command = [sys.executable, "-c", VERIFY, *map(str, folders)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_a_merge_is_made_and_proven_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command, with the proof that it runs by itself at that level."""
    monkeypatch.setitem(quantised.FORMS, "mixed", WHOLE["mixed-precision"])
    one = quantised.build("mixed", tmp_path)
    given = [
        "merge",
        str(one.adapter),
        "--base",
        str(one.base),
        "--output",
        str(tmp_path / "made"),
        "--verify",
        "weights",
        "--quiet",
    ]
    program = f"import sys; from bot.cli import _guarded; print(_guarded({given!r}), "
    program += "*(name for name in ('torch', 'transformers', 'compressed_tensors') if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0", (done.stdout, done.stderr)
