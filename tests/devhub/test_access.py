"""Tokens, privacy and gates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from bot.devhub import DevHub


@pytest.fixture
def nobody(hub: DevHub) -> HfApi:
    """A client without a token."""
    return HfApi(endpoint=hub.url, token=False)


@pytest.fixture
def other(hub: DevHub) -> HfApi:
    """Another user's client."""
    return HfApi(endpoint=hub.url, token=hub.create_token(hub.create_user("other")))


def test_whoami_names_user_orgs_and_the_tokens_role(hub: DevHub, api: HfApi) -> None:
    hub.create_org("org", members={"demo": "admin"})
    me = api.whoami()
    assert (me["name"], me["type"], me["auth"]["accessToken"]["role"]) == ("demo", "user", "write")
    assert [(org["name"], org["roleInOrg"]) for org in me["orgs"]] == [("org", "admin")]
    assert api.whoami(hub.create_token("demo", "read"))["auth"]["accessToken"]["role"] == "read"
    fine = api.whoami(hub.create_token("demo", "fine-grained", ["demo/a"]))["auth"]["accessToken"]
    assert fine["role"] == "fineGrained"


def test_a_token_that_was_never_issued_or_is_revoked_is_401(hub: DevHub, api: HfApi, repo: str) -> None:
    token = hub.create_token("demo")
    assert api.whoami(token)["name"] == "demo"
    hub.revoke_token(token)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token)
    for bad in (token, "hf_nonsense"):
        with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header") as refused:
            api.model_info(repo, token=bad)
        assert refused.value.response.status_code == 401
        assert not isinstance(refused.value, RepositoryNotFoundError)


def test_a_token_that_has_ended_is_answered_as_one_that_never_was(hub: DevHub, api: HfApi, repo: str) -> None:
    api.model_info(repo, token=hub.create_token("demo", lifetime=60))
    with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header") as refused:
        api.model_info(repo, token=hub.create_token("demo", lifetime=0))
    assert refused.value.response.status_code == 401


def test_whose_the_token_of_a_trusted_publisher_is_nobody_is_told(hub: DevHub, api: HfApi, repo: str) -> None:
    token = hub.create_token("demo", repos=[repo], identity=True)
    with pytest.raises(HfHubHTTPError, match="issued to a trusted publisher") as refused:
        api.whoami(token)
    assert refused.value.response.status_code == 403
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo, token=token)


def test_a_read_token_reads_and_does_not_write(hub: DevHub, api: HfApi, repo: str, cache: Path) -> None:
    api.update_repo_settings(repo, private=True)
    reader = HfApi(endpoint=hub.url, token=hub.create_token("demo", "read"))
    assert Path(reader.hf_hub_download(repo, ".gitattributes", cache_dir=cache)).exists()
    reader.auth_check(repo)
    for write in (
        lambda: reader.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo),
        lambda: reader.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo, create_pr=True),
        lambda: reader.create_tag(repo, tag="v1"),
        lambda: reader.create_discussion(repo, "hello"),
        lambda: reader.update_repo_settings(repo, private=False),
        lambda: reader.delete_repo(repo),
        lambda: reader.auth_check(repo, write=True),
    ):
        with pytest.raises(HfHubHTTPError, match='This token has the role "read"') as refused:
            write()
        assert refused.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError, match="You don't have the rights to create a model"):
        reader.create_repo("demo/new")


def test_nobody_can_write(nobody: HfApi, repo: str) -> None:
    with pytest.raises(HfHubHTTPError) as refused:
        nobody.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo)
    assert refused.value.response.status_code == 401


def test_a_token_for_one_repo_writes_that_repo_only(hub: DevHub, api: HfApi, repo: str) -> None:
    api.create_repo("demo/second", private=True)
    for token in (hub.create_token("demo", "fine-grained", [repo]), hub.create_token("demo", "write", [repo])):
        scoped = HfApi(endpoint=hub.url, token=token)
        scoped.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo)
        assert not scoped.repo_exists("demo/second")
        with pytest.raises(HfHubHTTPError, match="rights to create"):
            scoped.create_repo("demo/third")
    api.update_repo_settings("demo/second", private=False)
    with pytest.raises(HfHubHTTPError, match="This token is not for demo/second"):
        scoped.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="demo/second")
    whole = HfApi(endpoint=hub.url, token=hub.create_token("demo", "fine-grained", ["demo/*"]))
    whole.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="demo/second")


def test_a_private_repo_does_not_exist_for_others(
    hub: DevHub, api: HfApi, nobody: HfApi, other: HfApi, cache: Path
) -> None:
    repo = api.create_repo("demo/secret", private=True).repo_id
    api.upload_file(path_or_fileobj=b"weights", path_in_repo="a.bin", repo_id=repo)
    assert api.model_info(repo).private
    for client, status in ((nobody, 401), (other, 404)):
        for ask in (
            lambda c: c.model_info(repo),
            lambda c: c.hf_hub_download(repo, "a.bin", cache_dir=cache),
            lambda c: c.list_repo_files(repo),
            lambda c: c.get_paths_info(repo, "a.bin"),
            lambda c: c.list_repo_refs(repo),
            lambda c: c.auth_check(repo),
            lambda c: list(c.get_repo_discussions(repo)),
            lambda c: c.upload_file(path_or_fileobj=b"x", path_in_repo="b", repo_id=repo),
        ):
            with pytest.raises(RepositoryNotFoundError) as refused:
                ask(client)
            assert refused.value.response.status_code == status
        assert "demo/secret" not in {m.id for m in client.list_models()}
    assert "demo/secret" in {m.id for m in api.list_models()}
    assert Path(api.hf_hub_download(repo, "a.bin", cache_dir=cache)).read_bytes() == b"weights"


def test_a_gated_repo_shows_itself_but_not_its_files(
    hub: DevHub, api: HfApi, nobody: HfApi, other: HfApi, repo: str, cache: Path
) -> None:
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=repo)
    api.upload_file(path_or_fileobj=b"w", path_in_repo="a.bin", repo_id=repo)
    api.update_repo_settings(repo, gated="manual")
    for client, status in ((nobody, 401), (other, 403)):
        assert client.model_info(repo).gated == "manual"
        for name in ("config.json", "a.bin"):
            with pytest.raises(GatedRepoError) as refused:
                client.hf_hub_download(repo, name, cache_dir=cache)
            assert refused.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            client.auth_check(repo)
    hub.grant(repo, "other")
    assert Path(other.hf_hub_download(repo, "a.bin", cache_dir=cache)).read_bytes() == b"w"
    other.auth_check(repo)
    hub.revoke(repo, "other")
    with pytest.raises(GatedRepoError):
        other.auth_check(repo)
    api.update_repo_settings(repo, gated=False)
    nobody.auth_check(repo)


def test_access_to_a_gated_repo_is_asked_for_and_granted_over_the_api(
    hub: DevHub, api: HfApi, other: HfApi, repo: str
) -> None:
    with pytest.raises(HfHubHTTPError, match="not gated"):
        api.grant_access(repo, "other")
    api.update_repo_settings(repo, gated="manual")
    api.grant_access(repo, "other")
    other.auth_check(repo)
    assert [r.username for r in api.list_accepted_access_requests(repo)] == ["other"]
    api.reject_access_request(repo, "other", rejection_reason="no")
    with pytest.raises(GatedRepoError):
        other.auth_check(repo)
    with pytest.raises(HfHubHTTPError):
        other.grant_access(repo, "other")
    assert list(api.list_pending_access_requests(repo)) == []


def test_members_of_an_organization_write_to_its_repos(hub: DevHub, api: HfApi, other: HfApi) -> None:
    hub.create_org("org", members={"demo": "write", "other": "read"})
    api.create_repo("org/model", private=True)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="org/model")
    assert other.file_exists("org/model", "a.txt")
    with pytest.raises(HfHubHTTPError, match="not the required permissions"):
        other.upload_file(path_or_fileobj=b"x", path_in_repo="b.txt", repo_id="org/model")
    with pytest.raises(HfHubHTTPError, match="rights to create"):
        api.create_repo("strangers/model")


def test_the_folder_holds_no_token_in_clear_but_the_owners_own_file(hub: DevHub, folder: Path) -> None:
    token, own = hub.create_token("demo"), hub.token
    assert (folder / "token").read_text() == own
    assert (folder / "token").stat().st_mode & 0o077 == 0
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "token":
            assert token.encode() not in path.read_bytes()
            assert own.encode() not in path.read_bytes()


def test_a_fine_grained_token_does_what_its_permissions_say(hub: DevHub, api: HfApi, repo: str) -> None:
    def client(*permissions: str, repos: tuple[str, ...] = ("demo/*",), **more: Any) -> HfApi:
        return HfApi(hub.url, hub.create_token("demo", "fine-grained", repos, permissions=permissions, **more))

    reader = client("repo.content.read")
    told = reader.whoami()["auth"]["accessToken"]["fineGrained"]
    assert told["scoped"] == [{"entity": {"type": "user", "name": "demo"}, "permissions": ["repo.content.read"]}]
    for refused in (
        lambda: reader.create_repo("demo/new"),
        lambda: reader.create_discussion(repo, "hello"),
        lambda: reader.auth_check(repo, write=True),
        lambda: client("repo.write", repos=("demo/new",)).create_repo("demo/new"),
        lambda: client("repo.content.read", "discussion.write").auth_check(repo, write=True),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            refused()
        assert error.value.response.status_code == 403
    client("repo.write").create_repo("demo/new")
    client("discussion.write").create_discussion(repo, "hello")
    client("repo.content.read", repos=(), everywhere=("discussion.write",)).create_discussion(repo, "hello")


def test_a_token_that_an_organization_has_not_approved_is_nobody_there(hub: DevHub, api: HfApi) -> None:
    hub.create_org("org", members=["demo"])
    api.create_repo("org/open")
    api.create_repo("org/secret", private=True)
    waiting = HfApi(hub.url, hub.create_token("demo", awaits=("org",)))
    assert waiting.repo_exists("org/open")
    assert not waiting.repo_exists("org/secret")
    for refused in (lambda: waiting.create_repo("org/new"), lambda: waiting.auth_check("org/open", write=True)):
        with pytest.raises(HfHubHTTPError, match="awaits the approval"):
            refused()


def test_a_gate_says_what_became_of_the_request(hub: DevHub, api: HfApi, other: HfApi, repo: str) -> None:
    api.update_repo_settings(repo, gated="manual")
    for change, words in ((None, "not in the authorized list"), (hub.request, "awaiting a review"),
                          (hub.revoke, "has been rejected")):  # fmt: skip
        if change:
            change(repo, "other")
        with pytest.raises(GatedRepoError, match=words):
            other.auth_check(repo)
    hub.grant(repo, "other")
    other.auth_check(repo)
    closed = HfApi(hub.url, hub.create_token("other", "fine-grained", gated=False))
    with pytest.raises(HfHubHTTPError, match="enable access to public gated repositories"):
        closed.auth_check(repo)


def test_private_storage_has_an_end(hub: DevHub, api: HfApi) -> None:
    hub.set_quota("demo", 1000)
    for name, private in (("demo/private", True), ("demo/public", False)):
        api.create_repo(name, private=private)
        api.upload_file(path_or_fileobj=b"\0" * 900, path_in_repo="a.bin", repo_id=name)
    api.upload_file(path_or_fileobj=b"\1" * 900, path_in_repo="b.bin", repo_id="demo/public")
    with pytest.raises(HfHubHTTPError, match="storage limit reached"):
        api.upload_file(path_or_fileobj=b"\1" * 900, path_in_repo="b.bin", repo_id="demo/private")
