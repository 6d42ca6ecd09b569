"""Whether a repo's owners made a commit: one in main's history, in a branch or under a tag. A pull request's can be anybody's."""

from __future__ import annotations

from itertools import islice

from huggingface_hub.utils import build_hf_headers, paginate  # type: ignore[attr-defined]  # re-exported lazily

from bot.errors import Outside
from bot.hub.connection import Connection
from bot.hub.errors import HubBusy, Unserved
from bot.hub.read import nobody_answered

LONGEST = 5_000  # commits of main that are looked through, 50 a request; what is older needs a tag


class HistoryClient(Connection):
    """Questions about one commit or name of a repo, answered from its refs and commits."""

    def is_owners(self, repo: str, sha: str) -> bool | None:
        """Whether a commit is in main's history, or the end of a branch or a tag. None where nobody can be asked."""
        where = self.where(f"read the history of {repo}", repo)
        headers = build_hf_headers(token=self.inputs.token, library_name="adapter-merge")

        def is_in_main() -> bool:
            commits = paginate(f"{self.endpoint}/api/models/{repo}/commits/main", params={}, headers=headers)
            return any(commit.get("id") == sha for commit in islice(commits, LONGEST))

        try:
            refs = self.patiently(where, lambda: self.inputs.list_repo_refs(repo))
            ends = {ref.target_commit for ref in (*refs.branches, *refs.tags)}
            return sha in ends or self.patiently(where, is_in_main)
        except Outside as away:
            if not (nobody_answered(away) or isinstance(away, Unserved)):
                raise
            return None

    def current_name(self, repo: str, *, sure: bool = False) -> str:
        """A repo's name as the Hub has it today: renamed repos answer to their old names. Itself where nobody knows it.

        `sure`: raises HubBusy where the Hub could not be asked, which says nothing of the name.
        """
        if repo not in self.current_names:
            try:
                where = self.where(f"look up {repo}", repo)
                info = self.patiently(where, lambda: self.inputs.model_info(repo), publishing=sure)
            except Outside as error:
                if sure and isinstance(error, HubBusy):
                    raise
                return repo
            self.current_names[repo] = info.id
        return self.current_names[repo]
