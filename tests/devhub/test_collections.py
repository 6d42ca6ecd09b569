"""Collections, by the real client."""

from __future__ import annotations

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from bot.devhub import DevHub


def test_a_collection_keeps_its_repos_in_order(api: HfApi, hub: DevHub) -> None:
    for name in ("demo/b", "demo/a"):
        api.create_repo(name)
    slug = api.create_collection("My Adapters").slug
    for name in ("demo/b", "demo/a"):
        api.add_collection_item(slug, name, "model")
    shown = HfApi(endpoint=hub.url, token=False).get_collection(slug)
    assert [(item.item_id, item.item_type) for item in shown.items] == [("demo/b", "model"), ("demo/a", "model")]
    assert slug.startswith("demo/my-adapters-")


def test_what_the_viewer_may_not_see_is_left_out(api: HfApi, hub: DevHub) -> None:
    api.create_repo("demo/secret", private=True)
    slug = api.create_collection("All").slug
    api.add_collection_item(slug, "demo/secret", "model")
    stranger = HfApi(endpoint=hub.url, token=hub.create_token(hub.create_user("other")))
    assert stranger.get_collection(slug).items == []
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.add_collection_item(slug, "demo/secret", "model")
    hidden = api.create_collection("Mine", private=True).slug
    with pytest.raises(HfHubHTTPError, match="404"):
        stranger.get_collection(hidden)
