"""What the Hub would refuse of a card is known before the first weight is downloaded: mended, or told with a way out."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
import yaml

from bot.devhub.faults import Fault
from tests.stories.conftest import Command, World

OLD = """---
language: [zh-CN, prose of a person]
datasets: [./data/train.jsonl, HuggingFaceFW/fineweb]
license: Apache 2.0
pipeline_tag: chatting
tags: [lora, sft, 7]
---
"""


def put_card(world: World, repo: str, text: str) -> None:
    """A card as the Hub has it from before it checked any."""
    world.hub.site.checks_cards = False
    answer = httpx2.post(
        f"{world.hub.url}/api/models/{repo}/commit/main",
        headers={"Authorization": f"Bearer {world.hub.token}", "Content-Type": "application/x-ndjson"},
        content="\n".join(
            json.dumps({"key": key, "value": value})
            for key, value in (("header", {"summary": "x"}), ("file", {"path": "README.md", "content": text}))
        ),
    )
    assert answer.status_code == 200, answer.text
    world.hub.site.checks_cards = True


def published(world: World) -> dict[str, Any]:
    text = world.api.hf_hub_download("demo/adapter-merged", "README.md")
    with open(text, encoding="utf-8") as opened:  # noqa: PTH123
        return dict(yaml.safe_load(opened.read().split("---\n")[1]))


def test_a_card_that_people_wrote_is_carried_as_far_as_the_hub_takes_it(adapter_merge: Command, world: World) -> None:
    put_card(world, "demo/adapter", OLD)
    ran = adapter_merge("run", "demo/adapter", "--verify", "files")
    assert ran.code == 0, ran.err
    assert "language 'zh-CN' becomes zh, language 'prose of a person' is left out" in ran.err
    assert (
        "The card's license is apache-2.0, the stricter one (the base's is mit; the adapter's is apache-2.0)" in ran.err
    )
    card = published(world)
    assert (card["language"], card["datasets"], card["license"]) == (["zh"], ["HuggingFaceFW/fineweb"], "apache-2.0")
    assert card["pipeline_tag"] == "text-generation"
    assert card["tags"] == ["adapter-merge", "merged", "lora", "sft", "7"]


def test_the_local_hub_refuses_such_a_card(world: World) -> None:
    with pytest.raises(ValueError, match="Invalid metadata") as caught:
        world.api.upload_file(path_or_fileobj=OLD.encode(), path_in_repo="README.md", repo_id="demo/adapter")
    for words in ('"license" must be one of', '"language[0]" must only contain lowercase', '"datasets[0]" with value'):
        assert words in str(caught.value)


def test_an_unknown_license_is_refused_before_the_hub_is_asked_anything(adapter_merge: Command, world: World) -> None:
    before = world.answers()
    ran = adapter_merge("run", "demo/adapter", "--license", "apache-9")
    assert ran.code == 2
    assert "'apache-9' is no license id that the Hub knows." in ran.err
    assert "such as apache-2.0" in ran.err
    assert world.answers() == before


def test_what_the_hub_refuses_all_the_same_is_told_before_any_weight_is_read(
    adapter_merge: Command, world: World
) -> None:
    body = json.dumps({"errors": [{"message": '"license" must be one of [new-1.0]'}], "warnings": []})
    world.hub.faults.add(Fault(path="/api/validate-yaml", status=400, body=body))
    ran = adapter_merge("run", "demo/adapter", "--verify", "files")
    assert ran.code == 5
    assert '"license" must be one of [new-1.0]' in ran.err
    assert "The plan" in ran.err
    assert "Downloading" not in ran.err
    assert "Merging" not in ran.err


def test_a_dry_run_says_what_the_hub_would_refuse(adapter_merge: Command, world: World) -> None:
    body = json.dumps({"errors": [{"message": '"license" must be one of [new-1.0]'}], "warnings": []})
    world.hub.faults.add(Fault(path="/api/validate-yaml", status=400, body=body))
    ran = adapter_merge("run", "demo/adapter", "--dry-run")
    assert ran.code == 0, ran.err
    assert "Publishing would fail: The Hub does not accept the model card's metadata" in ran.err


@pytest.mark.parametrize(
    "body", ["<html>no</html>", "[]", '{"errors": {}}', '{"errors": ["x"]}', '{"errors": [{"message": "\\ud800"}]}']
)
def test_a_refusal_of_another_shape_is_said_as_it_came(adapter_merge: Command, world: World, body: str) -> None:
    world.hub.faults.add(Fault(path="/api/validate-yaml", status=400, body=body))
    ran = adapter_merge("run", "demo/adapter", "--verify", "files")
    assert ran.code == 5, ran.err
    assert "The Hub does not accept the model card's metadata: " in ran.err
    assert "Traceback" not in ran.err


def test_a_noncommercial_base_and_a_free_adapter_make_no_free_model(adapter_merge: Command, world: World) -> None:
    put_card(world, "demo/base", "---\nlicense: cc-by-nc-4.0\n---\n")
    ran = adapter_merge("run", "demo/adapter", "--verify", "files")
    assert ran.code == 0, ran.err
    assert published(world)["license"] == "cc-by-nc-4.0"
