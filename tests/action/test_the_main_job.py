"""From a tag push to a published, proven model: the action on a runner, against a local Hub."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from bot.action.outputs import OUTPUTS
from tests.action.conftest import PUSHED_TAG, Runner, Step
from tests.browser import Reader
from tests.stories.conftest import Command, World

Run = Callable[..., Step]
MERGED = "demo/adapter-merged"


def published(world: World, file: str, repo: str = MERGED, revision: str = "main") -> Path:
    return Path(world.api.hf_hub_download(repo, file, revision=revision))


def test_a_tag_push_publishes_the_adapter_of_that_tag(run: Run, runner: Runner, world: World) -> None:
    world.api.create_tag("demo/adapter", tag=PUSHED_TAG)
    world.new_version("later", seed=9)  # main has moved on; the tag has not
    runner.push_tag()
    step = run()
    assert step.code == 0, step.log
    found = step.outputs
    assert tuple(found) == OUTPUTS
    assert (found["status"], found["verified"], found["repo"], found["tag"]) == (
        "published",
        "true",
        MERGED,
        PUSHED_TAG,
    )
    assert found["revision"] == world.api.model_info(MERGED).sha
    assert found["adapter-sha"] == world.api.model_info("demo/adapter", revision=PUSHED_TAG).sha
    assert found["base-sha"] == world.api.model_info("demo/base").sha
    assert found["pr-url"] == found["pr-number"] == ""
    report = json.loads(Path(found["report-path"]).read_text())
    assert report["merge"]["fingerprint"] == found["fingerprint"]
    assert report == json.loads(published(world, "verification.json").read_text())
    assert [tag.name for tag in world.api.list_repo_refs(MERGED).tags] == [PUSHED_TAG]
    assert not list((runner.work / "merged").iterdir()), "the merged folder is on the Hub now"


def test_the_checksums_are_those_of_the_published_files(run: Run, world: World) -> None:
    step = run()
    lines = Path(step.outputs["checksums-path"]).read_text().splitlines()
    assert len(lines) > 8
    for line in lines:
        sha256, name = line.split("  ")
        assert hashlib.sha256(published(world, name).read_bytes()).hexdigest() == sha256


def test_the_summary_tells_it_all(run: Run, world: World) -> None:
    step = run()
    assert step.summary.startswith("## ✓ Verified and published: demo/adapter-merged")
    for words in ("The plan", "### Evidence", "| touched |", "### Reproduce it", "adapter-merge merge demo/adapter@"):
        assert words in step.summary
    assert f"<{world.hub.url}/{MERGED}/tree/{step.outputs['revision']}>" in step.summary


def test_the_log_is_folded_and_masked(run: Run, world: World) -> None:
    step = run()
    assert step.raw.splitlines()[0] == f"::add-mask::{world.hub.token}"
    assert step.log.count("::group::") == step.log.count("::endgroup::") >= 4
    assert step.log.splitlines()[-1].startswith("✓ Verified and published: demo/adapter-merged")
    assert not step.annotations("error")


def test_a_second_run_is_unchanged_and_downloads_nothing(run: Run, world: World) -> None:
    first = run()
    before = len(world.hub.requests)
    step = run()
    assert (step.code, step.outputs["status"], step.outputs["verified"]) == (0, "unchanged", "true")
    assert step.outputs["revision"] == first.outputs["revision"]
    assert Path(step.outputs["report-path"]).exists()
    assert "### Evidence" in step.summary
    asked = world.hub.requests[before:]
    assert not [path for _, path, status in asked if "model-0000" in path and "json" not in path and status == 200]
    assert not [path for method, path, _ in asked if method != "GET" and "commit" in path]


def test_a_new_version_is_proposed(run: Run, world: World) -> None:
    run()
    world.new_version("v2", seed=5)
    step = run(adapter_revision="v2")
    assert step.code == 0, step.log
    assert step.outputs["status"] == "published"
    assert step.outputs["pr-number"] == "1"
    assert step.outputs["pr-url"].endswith(f"{MERGED}/discussions/1")
    assert step.outputs["tag"] == ""
    assert "pull request #1" in step.summary
    assert run(adapter="demo/adapter@v2").outputs["status"] == "unchanged"


def test_it_is_the_same_as_the_command(run: Run, world: World, adapter_merge: Command) -> None:
    assert adapter_merge("run", "demo/adapter@v1", "--verify", "weights", "--to", "demo/by-hand").code == 0
    assert run(adapter="demo/adapter@v1").code == 0
    by_action, by_hand = (
        json.loads(published(world, "verification.json", repo).read_text()) for repo in (MERGED, "demo/by-hand")
    )
    assert by_action["subject"] == by_hand["subject"]
    assert by_action["inputs"] == by_hand["inputs"]
    assert by_action["merge"] | {"target": ""} == by_hand["merge"] | {"target": ""}
    cards = [published(world, "README.md", repo).read_text() for repo in (MERGED, "demo/by-hand")]
    assert cards[0] == cards[1].replace("demo/by-hand", MERGED).replace("by-hand", "adapter-merged")


def test_an_adapter_in_the_repository_takes_the_pushed_tag(run: Run, runner: Runner, world: World) -> None:
    shutil.copytree(world.adapter, runner.workspace / "adapters/mine")
    runner.push_tag()
    step = run(adapter="./adapters/mine", target_repo="demo/mine-merged")
    assert step.code == 0, step.log
    assert (step.outputs["tag"], step.outputs["repo"]) == (PUSHED_TAG, "demo/mine-merged")
    report = json.loads(published(world, "verification.json", "demo/mine-merged").read_text())
    assert report["inputs"]["adapter"]["repo"] is None
    assert str(runner.workspace) not in json.dumps(report)


def test_without_publishing_the_folder_stays(run: Run, runner: Runner, world: World) -> None:
    step = run(publish="none", hf_token="")
    assert step.code == 0, step.log
    assert (step.outputs["status"], step.outputs["verified"], step.outputs["repo"]) == ("dry-run", "true", "")
    folder = Path(step.outputs["folder"])
    assert f"the merged folder is `{folder}`" in step.summary
    assert folder.is_relative_to(runner.temp), "where later steps of the job may use it"
    assert (folder / "verification.json").exists()
    assert not world.api.repo_exists(MERGED)


def test_several_adapters_go_each_to_its_own_repo(run: Run, world: World) -> None:
    world.api.create_repo("demo/second")
    world.api.upload_folder(repo_id="demo/second", folder_path=world.adapter)
    step = run(adapter="demo/adapter@v1\ndemo/second")
    assert step.code == 0, step.log
    found = {name: json.loads(value) for name, value in step.outputs.items()}
    assert tuple(found) == OUTPUTS
    assert found["repo"] == [MERGED, "demo/second-merged"]
    assert (found["status"], found["verified"]) == (["published"] * 2, ["true"] * 2)
    assert (found["tag"], found["folder"]) == (["v1", ""], ["", ""])
    assert found["revision"] == [world.api.model_info(repo).sha for repo in found["repo"]]
    reports = [json.loads(Path(path).read_text()) for path in found["report-path"]]
    assert [report["merge"]["fingerprint"] for report in reports] == found["fingerprint"]
    assert step.summary.count("## ✓ Verified and published") == 2


def test_a_checkpoint_in_the_adapters_repo_is_named_like_a_folder(run: Run, world: World) -> None:
    world.api.upload_folder(repo_id="demo/adapter", folder_path=world.adapter, path_in_repo="checkpoint-500")
    step = run(adapter="demo/adapter/checkpoint-500", adapter_revision="main", verify="files")
    assert step.code == 0, step.log
    assert step.outputs["repo"] == "demo/adapter-checkpoint-500-merged"
    sha = world.api.repo_info("demo/adapter").sha
    assert f"demo/adapter/checkpoint-500@{sha}" in step.summary
    told = json.loads(published(world, "verification.json", step.outputs["repo"]).read_text())
    assert told["inputs"]["adapter"] == {
        "repo": "demo/adapter",
        "sha": sha,
        "subfolder": "checkpoint-500",
        "revision": "main",
    }


def test_an_input_takes_the_names_that_people_write_and_answers_the_rest(run: Run, world: World) -> None:
    step = run(dtype="bf16", base_weights="STORED", publish="none", verify="files")
    assert step.code == 0, step.log
    told = json.loads(Path(step.outputs["report-path"]).read_text())
    assert told["merge"]["options"]["dtype"] == "bfloat16"
    assert "Four bits are nf4" in run(quantize="4bit").log


def test_of_several_adapters_none_is_published_when_one_is_refused(run: Run, world: World) -> None:
    step = run(adapter="demo/adapter, demo/base", target_repo="demo/one, demo/two")
    assert step.code == 3
    assert not world.api.repo_exists("demo/one")
    assert "## ✗ Refused: demo/base" in step.summary
    assert json.loads(step.outputs["status"]) == ["failed", "refused"]
    assert json.loads(step.outputs["repo"]) == ["", ""]


def test_without_publishing_every_adapters_folder_is_named(run: Run, world: World) -> None:
    world.new_version("v2", seed=5)
    step = run(adapter="demo/adapter@v1, demo/adapter@v2", publish="none", hf_token="")
    assert step.code == 0, step.log
    folders = json.loads(step.outputs["folder"])
    names = [json.loads((Path(folder) / "verification.json").read_text())["inputs"]["adapter"] for folder in folders]
    assert [name["revision"] for name in names] == ["v1", "v2"]


def test_several_adapters_become_one_model_where_the_workflow_says_how(
    run: Run, world: World, adapter_merge: Command
) -> None:
    world.new_version("v2", seed=5)
    step = run(adapter="demo/adapter@v1, demo/adapter@v2", combine="ties", weights="0.7,-0.3", density="0.4",
               majority_sign="frequency", target_repo="demo/both", report="hub-comment")  # fmt: skip
    assert step.code == 0, step.log
    assert (step.outputs["status"], step.outputs["repo"], step.outputs["tag"]) == ("published", "demo/both", "")
    shas = [world.api.model_info("demo/adapter", revision=tag).sha for tag in ("v1", "v2")]
    assert json.loads(step.outputs["adapter-sha"]) == shas
    assert "## ✓ Verified and published: demo/both" in step.summary
    assert "--combine ties --weights 0.7,-0.3" in step.summary
    options = ["--combine", "ties", "--weights", "0.7,-0.3", "--density", "0.4", "--majority-sign", "frequency"]
    inputs = ["demo/adapter@v1", "demo/adapter@v2", *options]
    assert adapter_merge("run", *inputs, "--to", "demo/by-hand", "--verify", "weights").code == 0
    reports = [
        json.loads(published(world, "verification.json", repo).read_text()) for repo in ("demo/both", "demo/by-hand")
    ]
    assert reports[0]["inputs"] == reports[1]["inputs"]
    assert reports[0]["subject"] == reports[1]["subject"]
    (discussion,) = world.api.get_repo_discussions("demo/adapter")
    details = world.api.get_discussion_details("demo/adapter", discussion.num)
    assert len(details.events) == 2, "a word on each"
    again = run(adapter="demo/adapter@v1, demo/adapter@v2", combine="ties", weights="0.7,-0.3", density="0.4",
                majority_sign="frequency", target_repo="demo/both")  # fmt: skip
    assert again.outputs["status"] == "unchanged"


def test_three_processes_with_one_token_each(runner: Runner, world: World, tmp_path: Path) -> None:
    read, write = world.hub.create_token("demo", "read"), world.hub.token
    world.api.update_repo_settings("demo/base", visibility="private")
    runner.environment["HF_HOME"] = str(tmp_path / "home")
    inputs = {"adapter": "demo/adapter@v1", "verify": "weights"}
    fetched = runner.process("fetch", light=True, hf_read_token=read, **inputs)
    assert fetched.code == 0, fetched.log
    assert fetched.outputs == {}
    runner.environment |= {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    merged = runner.process("merge", **inputs)
    assert merged.code == 0, merged.log
    assert merged.outputs == {}
    del runner.environment["HF_HUB_OFFLINE"], runner.environment["HF_ENDPOINT"]
    done = runner.process("publish", light=True, hf_token=write, **inputs)
    assert done.code == 0, done.log
    assert (done.outputs["status"], done.outputs["tag"]) == ("published", "v1")
    assert world.api.model_info(MERGED).private, "the base is private, so the result is"
    report = json.loads(published(world, "verification.json").read_text())
    assert report["inputs"]["adapter"] == {
        "repo": "demo/adapter", "sha": world.api.model_info("demo/adapter").sha, "revision": "v1",
    }  # fmt: skip
    for place in (fetched, merged, done):
        assert read not in place.log + place.summary
        assert write not in place.log + place.summary


def test_a_phase_without_the_one_before_it_says_so(run: Run) -> None:
    for phase in ("merge", "publish"):
        step = run(phase)
        assert step.code == 2
        assert "Run the fetch phase first" in step.log


def test_the_preflight_lets_the_fetch_phase_find_our_pull_request(run: Run, runner: Runner, world: World) -> None:
    reader = world.hub.create_token(world.hub.create_user("reader"), "read")
    run()
    world.new_version("v2", seed=5)
    assert run(adapter="demo/adapter@v2").outputs["pr-number"] == "1"
    assert run("preflight", adapter="demo/adapter@v2").code == 0
    step = run("fetch", adapter="demo/adapter@v2", hf_token="", hf_read_token=reader)
    assert step.code == 0, step.log
    (job,) = json.loads((runner.work / "state.json").read_text())["jobs"]
    assert job["status"] == "unchanged"


def test_a_write_token_that_cannot_write_is_found_before_any_download(run: Run, world: World) -> None:
    before = len(world.hub.requests)
    step = run(hf_token=world.hub.create_token("demo", "read"))
    assert step.code == 5
    assert "token" in step.annotations("error")[0]
    asked = world.hub.requests[before:]
    assert not [path for _, path, status in asked if "model-0000" in path and "json" not in path and status == 200]


def test_what_actions_attest_takes_is_among_the_outputs(run: Run, world: World) -> None:
    step = run(verify="files")
    assert step.code == 0, step.log
    subjects = [line.split("  ") for line in Path(step.outputs["checksums-path"]).read_text().splitlines()]
    statements = [json.loads(line) for line in Path(step.outputs["attestation-path"]).read_text().splitlines()]
    predicates = [json.loads(Path(step.outputs[f"{name}-path"]).read_bytes()) for name in ("provenance", "test-result")]
    assert [statement["predicate"] for statement in statements] == predicates
    for statement in statements:
        named = [[subject["digest"]["sha256"], subject["name"]] for subject in statement["subject"]]
        assert sorted(named) == sorted(subjects)
    builder = predicates[0]["runDetails"]["builder"]["id"]
    assert builder == "https://github.com/octo/adapters/.github/workflows/merge.yml@refs/heads/main"
    assert run(verify="files").outputs["provenance-path"] == ""  # of a merge that is there already nothing is attested


def test_every_run_leaves_its_report_as_a_page_and_puts_it_into_the_target_where_that_is_asked_for(
    run: Run, world: World
) -> None:
    step = run(verify="files")
    page = Path(step.outputs["page-path"]).read_text()
    assert "demo/adapter merged into demo/base" in page
    assert "report.html" not in world.api.list_repo_files(MERGED)
    step = run(verify="files", report="repo", target_repo="demo/with-page")
    assert step.code == 0, step.log
    assert published(world, "report.html", "demo/with-page").read_text() == Path(step.outputs["page-path"]).read_text()
    again = run(verify="files", report="page", target_repo="demo/with-page")
    assert again.outputs["status"] == "unchanged"
    assert "✓ Verified" in Reader(Path(again.outputs["page-path"]).read_text()).text
