"""Discussions and the life of a pull request."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.community import DiscussionComment, DiscussionCommit, DiscussionStatusChange, DiscussionTitleChange
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from bot.devhub import DevHub


def test_create_commit_with_create_pr_opens_one_with_its_commit(api: HfApi, repo: str, cache: Path) -> None:
    adds = [CommitOperationAdd("a.bin", b"weights"), CommitOperationAdd("a.txt", b"text\n")]
    made = api.create_commit(repo, adds, commit_message="Add", commit_description="why", create_pr=True)
    pull = api.get_discussion_details(repo, 1)
    assert (pull.status, pull.is_pull_request, pull.title, pull.author) == ("open", True, "Add", "demo")
    assert (pull.target_branch, pull.git_reference, pull.conflicting_files) == ("refs/heads/main", "refs/pr/1", [])
    first, second = pull.events
    assert isinstance(first, DiscussionComment)
    assert isinstance(second, DiscussionCommit)
    assert (first.content, second.oid, second.summary) == ("why", made.oid, "Add")
    assert "+text\n" in (pull.diff or "")
    assert "+oid sha256:" in (pull.diff or "")
    assert api.list_repo_files(repo) == [".gitattributes"]
    got = api.snapshot_download(repo, revision="refs/pr/1", cache_dir=cache)
    assert (Path(got) / "a.bin").read_bytes() == b"weights"
    (ref,) = api.list_repo_refs(repo, include_pull_requests=True).pull_requests or ()
    assert (ref.name, ref.ref, ref.target_commit) == ("1", "refs/pr/1", made.oid)


def test_a_pull_request_opened_first_is_a_draft_until_it_is_opened(api: HfApi, repo: str) -> None:
    pull = api.create_pull_request(repo, "Merged weights", description="hidden <!-- marker -->")
    assert pull.status == "draft"
    assert api.model_info(repo, revision="refs/pr/1").sha == api.model_info(repo).sha
    parent = api.model_info(repo, revision="refs/pr/1").sha
    for number in range(2):
        made = api.create_commit(
            repo,
            [CommitOperationAdd("a.txt", b"%d" % number)],
            commit_message="step",
            revision="refs/pr/1",
            parent_commit=parent,
        )
        parent = made.oid
    with pytest.raises(BadRequestError, match="draft"):
        api.merge_pull_request(repo, 1)
    change = api.change_discussion_status(repo, 1, "open", comment="verified")
    assert change.new_status == "open"
    details = api.get_discussion_details(repo, 1)
    assert [type(e) for e in details.events] == [
        DiscussionComment,
        DiscussionCommit,
        DiscussionCommit,
        DiscussionComment,
        DiscussionStatusChange,
    ]
    assert "marker" in details.events[0].content  # type: ignore[attr-defined]


def test_merging_brings_the_files_to_main_and_ends_the_pull_request(api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"new", path_in_repo="new.txt", repo_id=repo, create_pr=True)
    api.upload_file(path_or_fileobj=b"main", path_in_repo="main.txt", repo_id=repo)
    api.merge_pull_request(repo, 1, comment="thanks")
    assert set(api.list_repo_files(repo)) == {".gitattributes", "new.txt", "main.txt"}
    pull = api.get_discussion_details(repo, 1)
    assert (pull.status, pull.merge_commit_oid) == ("merged", api.model_info(repo).sha)
    assert isinstance(pull.events[-1], DiscussionStatusChange)
    for action in (
        lambda: api.merge_pull_request(repo, 1),
        lambda: api.change_discussion_status(repo, 1, "closed"),
    ):
        with pytest.raises(BadRequestError):
            action()
    titles = [c.title for c in api.list_repo_commits(repo)]
    assert len(titles) == 4
    assert titles[0].endswith("(#1)")


def test_conflicts_are_named_and_not_merged(api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"theirs", path_in_repo="a.txt", repo_id=repo, create_pr=True)
    api.upload_file(path_or_fileobj=b"ours", path_in_repo="a.txt", repo_id=repo)
    assert api.get_discussion_details(repo, 1).conflicting_files == ["a.txt"]
    with pytest.raises(HfHubHTTPError, match=r"conflicts in: a\.txt"):
        api.merge_pull_request(repo, 1)


def test_a_pull_request_can_be_closed_and_reopened(api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo, create_pr=True)
    api.change_discussion_status(repo, 1, "closed", comment="no")
    assert api.get_discussion_details(repo, 1).status == "closed"
    with pytest.raises(BadRequestError):
        api.merge_pull_request(repo, 1)
    api.change_discussion_status(repo, 1, "open")
    api.merge_pull_request(repo, 1)


def test_comments_are_made_edited_and_hidden(api: HfApi, repo: str) -> None:
    thread = api.create_discussion(repo, "A question", description="How?")
    assert (thread.status, thread.is_pull_request) == ("open", False)
    said = api.comment_discussion(repo, thread.num, "first")
    assert (said.content, said.edited, said.author) == ("first", False, "demo")
    edited = api.edit_discussion_comment(repo, thread.num, said.id, "second")
    assert (edited.content, edited.edited) == ("second", True)
    assert [version["raw"] for version in edited.edit_history] == ["second", "first"]
    with pytest.warns(UserWarning, match="irreversible"):
        hidden = api.hide_discussion_comment(repo, thread.num, said.id)
    assert hidden.hidden
    assert "second" not in hidden.content
    renamed = api.rename_discussion(repo, thread.num, "A better question")
    assert isinstance(renamed, DiscussionTitleChange)
    assert (renamed.old_title, renamed.new_title) == ("A question", "A better question")
    assert api.get_discussion_details(repo, thread.num).title == "A better question"


def test_discussions_are_listed_newest_first_over_pages_and_by_kind(hub: DevHub, api: HfApi, repo: str) -> None:
    other = HfApi(endpoint=hub.url, token=hub.create_token(hub.create_user("other")))
    for number in range(12):
        api.create_discussion(repo, f"thread {number}")
    api.create_pull_request(repo, "a draft")
    other.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo, create_pr=True)
    api.change_discussion_status(repo, 3, "closed")
    assert [d.num for d in api.get_repo_discussions(repo)] == list(range(14, 0, -1))
    pulls = list(api.get_repo_discussions(repo, discussion_type="pull_request"))
    assert [(d.num, d.status) for d in pulls] == [(14, "open"), (13, "draft")]
    assert [d.num for d in api.get_repo_discussions(repo, discussion_status="closed")] == [3]
    assert [d.num for d in api.get_repo_discussions(repo, author="other")] == [14]


def test_titles_that_are_too_short_or_long_are_refused(api: HfApi, repo: str) -> None:
    for title in ("ab", "x" * 201):
        with pytest.raises(BadRequestError, match="3 to 200"):
            api.create_discussion(repo, title)


def test_a_missing_discussion_is_404(api: HfApi, repo: str) -> None:
    with pytest.raises(HfHubHTTPError) as refused:
        api.get_discussion_details(repo, 7)
    assert refused.value.response.status_code == 404


def test_a_stranger_proposes_and_commits_to_their_own_pull_request_only(hub: DevHub, api: HfApi, repo: str) -> None:
    stranger = HfApi(endpoint=hub.url, token=hub.create_token(hub.create_user("stranger")))
    with pytest.raises(HfHubHTTPError, match="not the required permissions"):
        stranger.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo)
    stranger.upload_file(path_or_fileobj=b"weights", path_in_repo="a.bin", repo_id=repo, create_pr=True)
    stranger.upload_file(path_or_fileobj=b"more", path_in_repo="b.bin", repo_id=repo, revision="refs/pr/1")
    with pytest.raises(HfHubHTTPError, match="not the required permissions"):
        stranger.merge_pull_request(repo, 1)
    api.create_pull_request(repo, "ours")
    with pytest.raises(HfHubHTTPError, match="not the required permissions"):
        stranger.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo, revision="refs/pr/2")
    with pytest.raises(HfHubHTTPError, match="not the required permissions"):
        stranger.change_discussion_status(repo, 2, "closed")
    stranger.change_discussion_status(repo, 1, "closed")
