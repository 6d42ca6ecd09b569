"""What every workflow and every example must keep to, and what holds merge.yml to the action."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bot.action.fan_out import EACH
from bot.dispatch.backends.github import MEMBER, OUTCOME
from tests.workflows.files import (
    EXAMPLES,
    GITHUB,
    OURS,
    ROOT,
    WORKFLOWS,
    Yaml,
    action,
    each_file,
    each_workflow,
    is_ours,
    jobs,
    read,
    steps,
    uses,
)

MERGE = GITHUB / "workflows" / "merge.yml"
SECRETS = {"hf-token", "hf-read-token", "github-token"}  # never typed into a form
OF_THE_WORKFLOW = {
    "author",
    "request-id",
    "runs-on",
    "oidc-resource",
    "container",
    "environment",
    "timeout-minutes",
}  # merge.yml's own
# What the form has no room for: a repository sets it once, by a variable, or it is the details of combine.
NOT_IN_THE_FORM = {
    "container": "CONTAINER", "environment": "ENVIRONMENT", "timeout-minutes": "TIMEOUT", "image": "IMAGE",
    "cache-dir": "CACHE_DIR", "gpus": "GPUS", "disk": "DISK", "author": "AUTHOR",
    "density": "", "seed": "", "rank": "", "majority-sign": "",
}  # fmt: skip
MOST_DISPATCH_INPUTS = 25  # GitHub's limit since December 2025
BROAD = {"write-all", "read-all"}


@each_file
def test_a_third_party_action_is_pinned_by_its_full_commit_with_the_version_beside_it(path: Path) -> None:
    text = path.read_text()
    for reference, _ in uses(path):
        if reference.startswith("./") or reference.partition("@")[0].startswith(OURS):
            continue
        assert re.search(r"@[0-9a-f]{40}$", reference), reference
        assert re.search(rf"uses: {re.escape(reference)}  # v\d+\.\d+\.\d+$", text, re.MULTILINE), reference


def test_one_version_of_an_action_has_one_commit_everywhere() -> None:
    found: dict[str, set[str]] = {}
    for path in (*WORKFLOWS, *EXAMPLES):
        for line in re.findall(r"uses: (\S+@[0-9a-f]{40}  # \S+)", path.read_text()):
            found.setdefault(line.partition("@")[0], set()).add(line)
    assert found
    assert {name: len(lines) for name, lines in found.items()} == dict.fromkeys(found, 1)


@each_file
def test_the_workflow_grants_nothing_and_each_job_says_what_it_needs(path: Path) -> None:
    assert read(path).get("permissions") == {}
    for name, job in jobs(path):
        assert isinstance(job.get("permissions"), dict), name
        assert not BROAD & set(job["permissions"].values()), name


@each_file
def test_no_expression_is_pasted_into_a_script(path: Path) -> None:
    for step in steps(path):
        assert "${{" not in step.get("run", ""), step.get("name")


@each_file
def test_a_checkout_does_not_leave_its_token_behind(path: Path) -> None:
    for reference, step in uses(path):
        if reference.startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] == "false"


@each_file
def test_a_run_that_publishes_is_never_cancelled_by_a_later_one(path: Path) -> None:
    document = read(path)
    found = [document.get("concurrency"), *(job.get("concurrency") for _, job in jobs(path))]
    if path.name in ("ci.yml", "pull-request-plan.yml"):
        return  # they publish nothing; only the newest commit matters
    for concurrency in filter(None, found):
        assert concurrency["cancel-in-progress"] == "false"
    if any(word in document["on"] for word in ("push", "repository_dispatch")) and path.name != "reusable.yml":
        group = next(filter(None, found))
        assert "${{" in group["group"] or group.get("queue") == "max", "one group for all would drop a tag"


@each_file
def test_every_input_given_to_our_action_and_every_output_taken_exists(path: Path) -> None:
    known = action()
    ids = set()
    for reference, step in uses(path):
        if is_ours(reference):
            assert set(step.get("with", {})) <= set(known["inputs"]), path.name
            assert "adapter" in step["with"]
            ids.add(step.get("id"))
    text = path.read_text()
    for step_id, output in re.findall(r"steps\.([\w-]+)\.outputs\.([\w-]+)", text):
        assert step_id not in ids or output in known["outputs"], output


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_calls_the_released_action_or_workflow(path: Path) -> None:
    found = [reference for reference, _ in uses(path) if reference.startswith(OURS)]
    found += re.findall(rf"git\+https://github\.com/({OURS}@\S+?)\"", path.read_text())  # the command itself
    assert found
    assert set(found) <= {f"{OURS}@v1", f"{OURS}/.github/workflows/merge.yml@v1"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_a_call_of_the_reusable_workflow_fits_it(path: Path) -> None:
    call = read(MERGE)["on"]["workflow_call"]
    for reference, job in uses(path):
        if reference.startswith(f"{OURS}/.github/workflows/merge.yml@"):
            assert set(job["with"]) <= set(call["inputs"])
            assert set(job["secrets"]) <= set(call["secrets"])
            needed = dict(jobs(MERGE))["merge"]["permissions"]
            assert needed.items() <= job["permissions"].items(), "GitHub does not start it with less"


@each_workflow
def test_every_make_target_that_a_script_names_exists(path: Path) -> None:
    targets = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)) | {".venv/ready"}
    for step in steps(path):
        for words in re.findall(r"^\s*make (.+)$", step.get("run", ""), re.MULTILINE):
            assert {word for word in words.split() if "=" not in word} <= targets


@each_workflow
def test_a_job_on_a_hosted_runner_names_its_release(path: Path) -> None:
    for _, job in jobs(path):
        assert "ubuntu-latest" not in str(job.get("runs-on", ""))


# --- merge.yml ----------------------------------------------------------------------------------------------------


def _call() -> Yaml:
    return next(step for reference, step in uses(MERGE) if is_ours(reference))


def test_merge_yml_takes_every_input_of_the_action_by_hand_and_as_a_call() -> None:
    on = read(MERGE)["on"]
    wanted = set(action()["inputs"]) - SECRETS | OF_THE_WORKFLOW
    assert set(on["workflow_dispatch"]["inputs"]) == wanted - NOT_IN_THE_FORM.keys()
    assert set(on["workflow_call"]["inputs"]) == wanted
    assert len(on["workflow_dispatch"]["inputs"]) <= MOST_DISPATCH_INPUTS


@pytest.mark.parametrize("name", [name for name, variable in NOT_IN_THE_FORM.items() if variable])
def test_what_the_form_lacks_a_variable_of_the_repository_says(name: str) -> None:
    text = MERGE.read_text()
    assert f"inputs.{name} || vars.ADAPTER_MERGE_{NOT_IN_THE_FORM[name]}" in text
    assert f"_{NOT_IN_THE_FORM[name]}" in text.partition("\nname:")[0], "the head of the file names it"


def test_the_job_can_be_given_a_container_an_environment_and_a_time_limit() -> None:
    job = dict(jobs(MERGE))["merge"]
    for name in ("container", "environment", "timeout-minutes"):
        assert f"inputs.{name}" in job[name], name
        assert job[name].startswith("${{"), f"{name} is one expression: an empty text below a key of it is an error"
    assert job["defaults"]["run"]["shell"] == "bash", "in a job container, scripts are sh's otherwise"


def test_the_form_and_the_call_say_the_same() -> None:
    on = read(MERGE)["on"]
    for name, by_hand in on["workflow_dispatch"]["inputs"].items():
        called = on["workflow_call"]["inputs"][name]
        for key in ("description", "default", "required"):
            assert by_hand.get(key) == called.get(key), name
        assert called["type"] == ("string" if by_hand["type"] == "choice" else by_hand["type"]), name


def test_merge_yml_hands_every_input_on_and_falls_back_to_the_actions_own_default() -> None:
    given = _call()["with"]
    assert set(given) == set(action()["inputs"]) - {"github-token"}  # its default is the job's own
    for name, input in action()["inputs"].items():
        default = input.get("default", "")
        if name in SECRETS or not default or name == "image":  # an empty image is the action's own
            continue
        # A tag push has no inputs at all, and an empty value would stand in the default's place.
        assert given[name].endswith((f"|| '{default}' }}}}", f"|| {default} }}}}")), name


def test_merge_yml_has_every_output_of_the_action() -> None:
    wanted = set(action()["outputs"])
    assert set(read(MERGE)["on"]["workflow_call"]["outputs"]) == wanted
    assert set(dict(jobs(MERGE))["merge"]["outputs"]) == wanted


@pytest.mark.parametrize(
    ("adapter", "wanted"),
    [("./adapter", True), ("owner/a, ./b", True), ("owner/a\n./b", True), ("owner/a", False), ("owner/a@v1.0", False)],
)
def test_merge_yml_checks_the_repository_out_where_any_adapter_is_a_folder_of_it(adapter: str, wanted: bool) -> None:
    said = dict(jobs(MERGE))["merge"]["steps"][0]["if"]
    look = re.fullmatch(r"(startsWith|contains)\(env\.ADAPTER, '(.*)'\)", said)
    assert look, said
    assert (adapter.startswith(look[2]) if look[1] == "startsWith" else look[2] in adapter) is wanted


def test_the_name_of_a_run_ends_with_the_id_of_its_request() -> None:
    last = read(MERGE)["run-name"].split("${{")[-1]
    assert last.strip(" }") == "inputs.request-id || github.event.client_payload.request_id"


def test_what_came_of_a_run_is_left_behind_whatever_happens() -> None:
    (write, leave) = list(steps(MERGE))[-2:]
    assert write["if"] == leave["if"] == "always()"
    assert write["env"]["OUTCOME"] == "${{ toJSON(steps.merge.outputs) }}", "not pasted into the script"
    assert leave["with"]["name"].startswith(f"{OUTCOME}-${{{{ inputs.request-id ||")
    assert write["run"].splitlines()[0].endswith(f'/{MEMBER}"')
    assert leave["continue-on-error"] == "true", "the merge stands where its outcome cannot be uploaded"


def test_several_adapters_are_a_job_each_of_which_none_ends_another() -> None:
    listing, merge = dict(jobs(MERGE)).values()
    assert merge["needs"] == "adapters"
    assert merge["strategy"]["fail-fast"] == "false"
    assert "needs.adapters.outputs.merges" in merge["strategy"]["matrix"]["merge"]
    for name in (
        "adapter",
        "adapter-revision",
        "target-repo",
    ):  # what differs from job to job wins over what is given for all
        given = merge["env"]["ADAPTER"] if name == "adapter" else _call()["with"][name]
        assert given.startswith(f"${{{{ matrix.merge.{name} || "), name
    assert "matrix.merge.adapter" in merge["concurrency"]["group"]
    assert "strategy.job-index" in merge["steps"][-1]["with"]["name"], "each leaves an outcome of its own"
    read_by_the_list = set(EACH.values()) | {"INPUT_ADAPTER", "INPUT_AUTHOR", "HF_TOKEN"}
    assert set(listing["steps"][-1]["env"]) == read_by_the_list


def test_one_adapter_and_several_that_become_one_wait_for_no_list() -> None:
    listing, merge = dict(jobs(MERGE)).values()
    assert listing["if"].startswith("!inputs.combine")
    for sign in ("','", "':'", "fromJSON('\"\\n\"')"):
        assert re.search(rf"contains\([^()]*, {re.escape(sign)}\)", listing["if"]), sign
    assert merge["if"].startswith("!cancelled() && needs.adapters.result != 'failure'"), (
        "a list that was skipped is no obstacle"
    )
    assert merge["strategy"]["matrix"]["merge"].endswith("""|| '[{"adapter":""}]') }}""")


@pytest.mark.parametrize("name", ["dtype", "verify", "quantize", "force", "target-repo", "base-model", "license"])
def test_an_event_of_the_bot_carries_options_too(name: str) -> None:
    assert f"github.event.client_payload.options.{name}" in _call()["with"][name]


def test_merge_yml_runs_the_action_of_its_own_commit() -> None:
    checkouts = [step["with"] for reference, step in uses(MERGE) if reference.startswith("actions/checkout@")]
    owns = [given for given in checkouts if given.get("path") == ".adapter-merge"]
    assert len(owns) == len(list(jobs(MERGE)))
    for own in owns:
        assert own["ref"] == "${{ job.workflow_sha }}"
        assert own["repository"] == "${{ job.workflow_repository }}"
    assert _call()["uses"] == "./.adapter-merge"


# --- the repository's own files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/.github/", "/action.yml", "/bot/launch.sh", "/Dockerfile"])
def test_what_runs_with_rights_of_its_own_has_an_owner(path: str) -> None:
    owners = (GITHUB / "CODEOWNERS").read_text().splitlines()
    assert any(line.split()[:1] == [path] and len(line.split()) > 1 for line in owners)
    assert (ROOT / path.strip("/")).exists()
