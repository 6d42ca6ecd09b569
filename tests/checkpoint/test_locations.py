"""Where parameters lie, held to transformers itself: what from_pretrained loads must be what the pieces add up to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from tests.checkpoint.reading import Checkpoint, number
from tests.factory import ALL_ARCHITECTURES, build

CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.utils.parametrize.ParametrizationList)


def saved(name: str, folder: Path, **settings: bool) -> Path:
    model = build(name)
    number(model)
    model.save_pretrained(folder, **settings)
    return folder


def loaded(name: str, folder: Path) -> torch.nn.Module:
    return getattr(transformers, ALL_ARCHITECTURES[name].auto).from_pretrained(folder, dtype=torch.float32)


def as_peft_sees_it(model: torch.nn.Module, name: str) -> torch.Tensor:
    """A parameter as experts × out × in: what PEFT's layers would add their B·A to."""
    parameter = model.get_parameter(name).detach()
    module = model.get_submodule(name.rpartition(".")[0])
    if isinstance(module, Conv1D) and parameter.dim() == 2:
        return parameter.T[None]
    if parameter.dim() == 3 and parameter.shape[0] > 1 and not isinstance(module, CONVOLUTIONS):
        return parameter.transpose(1, 2) if getattr(module, "is_transposed", False) else parameter
    return parameter.reshape(1, parameter.shape[0] if parameter.dim() else 1, -1)


def assert_all_found(checkpoint: Checkpoint, model: torch.nn.Module, prefix: tuple[str, str] = ("", "")) -> None:
    """Every parameter of the model, asked for with one prefix exchanged for another."""
    asked = {name: prefix[1] + name.removeprefix(prefix[0]) for name, _ in model.named_parameters()}
    found = checkpoint.names.find(list(asked.values()))
    assert not found.missing
    assert not found.unmergeable
    for name, spelled in asked.items():
        together = checkpoint.put_together(found.placements[spelled])
        assert torch.equal(together, as_peft_sees_it(model, name)), name


@pytest.mark.parametrize("published", [True, False], ids=["published", "new"])
@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_every_parameter_is_put_together_from_the_checkpoint(name: str, published: bool, tmp_path: Path) -> None:
    """Both as transformers saves a model for everybody (per expert, old prefixes) and as it holds it in memory."""
    saved(name, tmp_path, save_original_format=published)
    assert_all_found(Checkpoint(tmp_path), loaded(name, tmp_path))


@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_is_transposed_is_the_modules_own(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    model = loaded(name, tmp_path)
    found = Checkpoint(tmp_path).names.find([name for name, _ in model.named_parameters()])
    for parameter, placement in found.placements.items():
        module = model.get_submodule(parameter.rpartition(".")[0])
        if placement.experts > 1:
            assert placement.transposed == getattr(module, "is_transposed", False)
            assert placement.experts == module.num_experts


@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_the_parameters_of_an_expert_module_are_in_its_own_order(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    names = Checkpoint(tmp_path).names
    for path, module in loaded(name, tmp_path).named_modules():
        own = dict(module.named_parameters(recurse=False))
        stacks = any(one.dim() == 3 and one.shape[0] > 1 for one in own.values())
        if stacks and not isinstance(module, CONVOLUTIONS):
            assert names.expert_parameters(path) == tuple(key for key, one in own.items() if one.dim() > 1)
        elif own:
            assert names.expert_parameters(path) == ()


@pytest.mark.parametrize("published", [True, False], ids=["published", "new"])
@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_a_model_without_its_head_has_the_same_places(name: str, published: bool, tmp_path: Path) -> None:
    """An adapter trained on the bare model (AutoModel) names its modules without the base model's prefix."""
    saved(name, tmp_path, save_original_format=published)
    model = loaded(name, tmp_path)
    bare = getattr(model, model.base_model_prefix, None)
    if bare is None or bare is model:
        pytest.skip("this model has no bare model inside")
    prefix = f"{model.base_model_prefix}."
    checkpoint = Checkpoint(tmp_path)
    body = [name.removeprefix(prefix) for name, _ in model.named_parameters() if name.startswith(prefix)]
    found = checkpoint.names.find(body)
    assert not found.missing
    for spelled in body:
        together = checkpoint.put_together(found.placements[spelled])
        assert torch.equal(together, as_peft_sees_it(model, prefix + spelled)), spelled


@pytest.mark.parametrize("published", [True, False], ids=["published", "new"])
@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_published_names_lead_to_the_same_numbers_in_either_layout(name: str, published: bool, tmp_path: Path) -> None:
    """Adapters of transformers 4 name modules as the published checkpoint does: one expert each, old prefixes."""
    old = Checkpoint(saved(name, tmp_path / "published"))
    there = old if published else Checkpoint(saved(name, tmp_path / "new", save_original_format=False))
    found = there.names.find(list(old.tensors))
    assert not found.missing
    assert not found.unmergeable
    own = old.names.find(list(old.tensors))
    for key, tensor in old.tensors.items():
        together = there.put_together(found.placements[key])
        assert torch.equal(together, old.put_together(own.placements[key])), key
        assert sorted(together.flatten().tolist()) == sorted(tensor.flatten().tolist()), key


@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
@pytest.mark.parametrize("published", [True, False], ids=["published", "new"])
def test_head_and_embedding_are_known_and_whether_they_are_tied(name: str, published: bool, tmp_path: Path) -> None:
    saved(name, tmp_path, save_original_format=published)
    checkpoint = Checkpoint(tmp_path)
    model = loaded(name, tmp_path)
    head, embedding = model.get_output_embeddings(), text_embedding(model)
    if head is None:
        assert checkpoint.names.head is None
        assert not checkpoint.names.tied
    else:
        assert checkpoint.names.tied == (head.weight is embedding.weight)
        assert (checkpoint.names.head in checkpoint.tensors) == (not checkpoint.names.tied)
    if head is not None and not checkpoint.names.tied:
        assert torch.equal(checkpoint.tensors[checkpoint.names.head], head.weight)
    if embedding is not None:
        assert torch.equal(checkpoint.tensors[checkpoint.names.embedding], embedding.weight)


@pytest.mark.parametrize("published", [True, False], ids=["published", "new"])
@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_an_untied_head_written_under_its_name_is_loaded(name: str, published: bool, tmp_path: Path) -> None:
    """The name that a head would have must be one that from_pretrained reads it from."""
    from safetensors.torch import load_file

    from tests.checkpoint.reading import rewrite

    saved(name, tmp_path, save_original_format=published)
    names = Checkpoint(tmp_path).names
    if names.head is None or not names.tied or ALL_ARCHITECTURES[name].model_type in ("t5",):
        pytest.skip("no tied head, or one that is tied whatever the config says")
    tensors = load_file(tmp_path / "model.safetensors")
    own = tensors[names.embedding] + 0.5
    rewrite(tmp_path, tensors | {names.head: own}, {"tie_word_embeddings": False})
    assert torch.equal(loaded(name, tmp_path).get_output_embeddings().weight, own)
    assert not Checkpoint(tmp_path).names.tied


def text_embedding(model: torch.nn.Module) -> torch.nn.Module | None:
    try:
        found = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return found if isinstance(found, torch.nn.Embedding) else None
