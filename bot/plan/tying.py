"""Tied embeddings, as PEFT's unmerged forward has them: a head follows the embedding only where the adapter says so.

A plain LoRA (or a trained copy) on the embedding alone leaves the head with the base's values: the merged model needs two
tensors, and a config that says so. Trained tokens and `ensure_weight_tying` move both: one tensor stays.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bot.adapters.lora import FullTensor
from bot.adapters.lora_config import LoraSettings, is_saved
from bot.checkpoint.locations import Names
from bot.plan.claims import KeyClaims
from bot.records import Json, Stored

FLAG = "tie_word_embeddings"
UNTIED = "The adapter unties the head from the embedding: both are written."


def resolve_tying(
    claims: KeyClaims, settings: LoraSettings, names: Names, stored: Mapping[str, Stored], layers: Collection[str] = ()
) -> bool:
    """Whether the head must be written apart from the embedding. Changes the claims so that they say the same.

    `layers`: keys that PEFT's own layers change, beside what is claimed.
    """
    embedding, head = names.embedding, names.head
    if not names.tied or embedding is None or head is None or embedding == head or embedding not in stored:
        return False
    if code := _contradiction(claims, settings, embedding, head):
        claims.refuse(code, f"{embedding} and {head}")
        return False
    if _is_shared(claims, settings, embedding, head):
        _same(claims, embedding, head)
        return False
    if claims.rows.get(embedding) and not claims.changes(head):
        return False
    if not claims.changes(embedding) and not claims.changes(head) and not {embedding, head} & set(layers):
        claims.move(head)
        return False
    if names.scaled_by_tying:
        claims.refuse("tied-scaling", embedding)
    _share_copy(claims, embedding, head)
    return True


def edits(config: Json) -> dict[str, Any]:
    """The config of an untied model: the flag, at the top and wherever a nested config says it."""
    flags: dict[str, Any] = {FLAG: False}
    for name, value in config.items():
        if isinstance(value, dict) and value.get(FLAG):
            flags[f"{name}.{FLAG}"] = False
    return flags


def _is_shared(claims: KeyClaims, settings: LoraSettings, embedding: str, head: str) -> bool:
    """Whether PEFT trained one tensor for both: with `ensure_weight_tying`, or as tokens of the same rows.

    With `ensure_weight_tying` PEFT takes the head out of `modules_to_save`, and saves the shared module under both names:
    the head's is no copy of the base's then, whatever the list says.
    """
    mine, theirs = claims.rows.get(embedding), claims.rows.get(head)
    if mine or theirs:
        return mine is not None and theirs is not None and mine.rows == theirs.rows
    return settings.tying and claims.changes(embedding) and (claims.changes(head) or _is_trained(claims, embedding))


def _contradiction(claims: KeyClaims, settings: LoraSettings, embedding: str, head: str) -> str | None:
    """The code of what PEFT's own unmerged model cannot be, or cannot be told to be."""
    tokens, other = claims.rows.get(embedding), claims.rows.get(head)
    if tokens and not other and (claims.changes(head) or is_saved(settings, head)):
        return "tokens-and-weight"  # the head is to follow the tokens, and to be something else
    if settings.tying and (tokens or other) and (_is_trained(claims, embedding) or _is_trained(claims, head)):
        return "tokens-and-weight"
    alone = claims.changes(embedding) != claims.changes(head)
    if settings.tying and alone and not (tokens or other or _is_trained(claims, embedding)):
        return "tied-by-half"
    return None


def _is_trained(claims: KeyClaims, key: str) -> bool:
    """Whether the adapter brings the whole weight, trained."""
    return key in claims.values and claims.values[key].trained


def _same(claims: KeyClaims, embedding: str, head: str) -> None:
    """Both were saved and PEFT kept them equal: the head's tensors must say what the embedding's say."""
    equal = claims.must_be_equal
    for patch, other in zip(claims.patches.get(embedding, ()), claims.patches.get(head, ()), strict=False):
        for mine, theirs in zip(patch.terms, other.terms, strict=True):
            assert mine.right is not None
            assert theirs.right is not None
            equal.append((mine.left.stored, theirs.left.stored, mine.left.transposed != theirs.left.transposed))
            equal.append((mine.right.stored, theirs.right.stored, mine.right.transposed != theirs.right.transposed))
    if embedding in claims.values and head in claims.values:
        equal.append((claims.values[embedding].values, claims.values[head].values, False))
    if embedding in claims.rows and head in claims.rows:
        equal.append((claims.rows[embedding].values, claims.rows[head].values, False))
    claims.move(head)


def _share_copy(claims: KeyClaims, embedding: str, head: str) -> None:
    """A copy of the embedding that PEFT saved along is loaded over the shared tensor: it is the head's W too."""
    brought = claims.values.get(embedding)
    if brought and not brought.trained and head not in claims.values:
        claims.values[head] = FullTensor(parameter=head, values=brought.values, trained=False)
