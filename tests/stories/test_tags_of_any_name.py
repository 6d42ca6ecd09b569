"""A tag that git allows is carried to the merged model, whatever is in it: an @, a slash, a plus, a percent sign."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest

from tests.stories.conftest import Command, World

TAGS = ["lora@1.0.0", "release/2024+1", "ü-100%", "v1.0"]


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_of_any_name_is_merged_by_that_name_and_carried(adapter_merge: Command, world: World, tag: str) -> None:
    world.api.create_tag("demo/adapter", tag=tag)
    sha = world.api.model_info("demo/adapter", revision=tag).sha
    ran = adapter_merge("run", f"demo/adapter@{tag}", "--verify", "files", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert (found["adapter"]["sha"], found["adapter"]["revision"]) == (sha, tag)
    assert found["publication"]["tag"] == tag
    tags = {one.name: one.target_commit for one in world.api.list_repo_refs("demo/adapter-merged").tags}
    assert tags == {tag: found["publication"]["revision"]}
    card = Path(world.api.hf_hub_download("demo/adapter-merged", "README.md", revision=tag)).read_text(encoding="utf-8")
    link = f"([{tag}]({world.hub.url}/demo/adapter/tree/{quote(tag, safe='')}))"
    assert link in card
    assert httpx2.get(f"{world.hub.url}/demo/adapter/tree/{quote(tag, safe='')}").status_code == 200
    assert adapter_merge("run", f"demo/adapter@{tag}", "--verify", "files").out.startswith("✓ unchanged")
