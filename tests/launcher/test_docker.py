"""With Docker: a container for each phase, with what it needs and nothing else."""

from __future__ import annotations

import os
import re

import pytest

from tests.launcher.conftest import GITHUB_TOKEN, IDENTITY, READ, WRITE, Call, Ran, Runner

SECRETS = (GITHUB_TOKEN, READ, WRITE, IDENTITY, "ey.neverOurs", "not for us")


def secrets(call: Call) -> set[str]:
    """The secrets that a container gets. The client that starts it has no others either."""
    held = {secret for secret in SECRETS if secret in call.given.values()}
    assert held >= {secret for secret in SECRETS[:4] if secret in call.env.values()}
    return held


@pytest.fixture
def ran(runner: Runner) -> Ran:
    runner.env |= {
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": IDENTITY,
        "ACTIONS_ID_TOKEN_REQUEST_URL": "https://example.org/id",
        "HF_OIDC_RESOURCE": "demo/adapter-merged",
    }
    return runner.run(hf_token=WRITE, hf_read_token=READ)


def test_the_phases_run_one_after_the_other(ran: Ran) -> None:
    assert ran.code == 0, ran.log
    assert list(ran.phases()) == ["preflight", "fetch", "merge", "publish"]
    assert re.findall("this is (.*)", ran.log) == ["preflight", "fetch", "merge", "publish"]


def test_each_phase_has_its_own_token_and_the_merge_has_none(ran: Ran) -> None:
    phases = ran.phases()
    assert secrets(phases["preflight"]) == {WRITE, IDENTITY}
    assert secrets(phases["fetch"]) == {READ}
    assert secrets(phases["merge"]) == set()
    assert secrets(phases["publish"]) == {WRITE, GITHUB_TOKEN, IDENTITY}
    assert phases["publish"].given["HF_OIDC_RESOURCE"] == "demo/adapter-merged"


def test_one_token_alone_reads_and_writes(runner: Runner) -> None:
    phases = runner.run(hf_token=WRITE).phases()
    assert secrets(phases["fetch"]) == {WRITE}
    assert secrets(phases["merge"]) == set()


def test_a_token_in_the_jobs_environment_does_too(runner: Runner) -> None:
    runner.env["HF_TOKEN"] = WRITE
    phases = runner.run().phases()
    assert {name for name, call in phases.items() if WRITE in secrets(call)} == {"preflight", "fetch", "publish"}


def test_the_identity_of_a_user_reads(runner: Runner) -> None:
    runner.env |= {"ACTIONS_ID_TOKEN_REQUEST_TOKEN": IDENTITY, "HF_OIDC_RESOURCE": "somebody"}
    phases = runner.run().phases()
    assert secrets(phases["fetch"]) == {IDENTITY}
    assert secrets(phases["merge"]) == set()


def test_no_secret_is_on_a_command_line_or_in_the_log(ran: Ran) -> None:
    for secret in SECRETS:
        assert secret not in ran.log
        assert not [call for call in ran.calls if any(secret in argument for argument in call.arguments)]


def test_the_merge_has_no_network_and_knows_it(ran: Ran) -> None:
    merge = ran.phases()["merge"]
    assert merge.values("--network") == ["none"]
    assert merge.given["HF_HUB_OFFLINE"] == "1"
    for name in ("preflight", "fetch", "publish"):
        assert ran.phases()[name].values("--network") == []
        assert "HF_HUB_OFFLINE" not in ran.phases()[name].given


def test_a_hub_on_the_runners_own_loopback_is_reached_and_not_by_the_merge(runner: Runner) -> None:
    runner.env["HF_ENDPOINT"] = "http://127.0.0.1:5999"
    phases = runner.run().phases()
    assert [call.values("--network") for call in phases.values()] == [["host"], ["host"], ["none"], ["host"]]


def test_every_container_is_the_callers_and_may_do_nothing_else(ran: Ran) -> None:
    for call in ran.phases().values():
        assert call.values("--user") == [f"{os.getuid()}:{os.getgid()}"]
        assert call.values("--cap-drop") == ["ALL"]
        assert call.values("--security-opt") == ["no-new-privileges"]
        assert {"--rm", "--init", "--read-only"} <= set(call.arguments)
        assert call.values("--tmpfs")[0] == "/tmp"
        assert "-it" not in call.arguments
        assert "--privileged" not in call.arguments


def test_with_a_rootless_docker_the_containers_root_is_the_caller(runner: Runner) -> None:
    runner.env["STUB_INFO"] = '{"SecurityOptions":["name=seccomp","name=rootless"]}'
    assert runner.run().phases()["fetch"].values("--user") == ["0:0"]


def test_paths_are_the_same_inside_and_only_ours_can_be_written(ran: Ran, runner: Runner) -> None:
    mounts = ran.phases()["merge"].mounts
    workspace, temp = str(runner.workspace), str(runner.temp)
    assert mounts[workspace] == f"{workspace},readonly"
    assert mounts[temp] == f"{temp},readonly"
    written = {target for target, source in mounts.items() if source == target}
    assert written == {
        f"{temp}/adapter-merge",
        f"{runner.root}/tools/adapter-merge",
        runner.env["GITHUB_OUTPUT"],
        runner.env["GITHUB_STEP_SUMMARY"],
    }
    assert mounts[runner.env["GITHUB_EVENT_PATH"]].endswith(",readonly")
    assert ran.phases()["merge"].values("--workdir") == [workspace]


def test_tokens_that_other_steps_left_in_files_are_hidden(runner: Runner) -> None:
    (runner.workspace / ".git").mkdir()
    (runner.workspace / "elsewhere/.git").mkdir(parents=True)
    (runner.temp / "git-credentials-1.config").write_text("token")
    (runner.root / "tools/adapter-merge").mkdir()
    (runner.root / "tools/adapter-merge/token").write_text("token")
    for call in runner.run().phases().values():
        assert call.mounts[f"{runner.temp}/git-credentials-1.config"] == "/dev/null,readonly"
        assert call.mounts[f"{runner.root}/tools/adapter-merge/token"] == "/dev/null,readonly"
        assert call.values("--tmpfs")[1:] == [f"{runner.workspace}/.git", f"{runner.workspace}/elsewhere/.git"]


def test_every_input_arrives_and_of_the_environment_only_what_is_known(runner: Runner) -> None:
    runner.env |= {"GITHUB_REF": "refs/tags/v1", "HF_HUB_DISABLE_XET": "1", "UNKNOWN": "x"}
    given = runner.run(adapter="a/b\nc/d", license="mit").phases()["fetch"].given
    assert given["INPUT_ADAPTER"] == "a/b\nc/d"
    assert given["INPUT_LICENSE"] == "mit"
    assert given["INPUT_PUBLISH"] == "auto"
    assert given["GITHUB_REF"] == "refs/tags/v1"
    assert given["HF_HUB_DISABLE_XET"] == "1"
    assert given["ADAPTER_MERGE_WORK"] == f"{runner.temp}/adapter-merge"
    assert given["HF_HOME"] == f"{runner.root}/tools/adapter-merge"
    assert not {"UNKNOWN", "PATH", "HOME", "SECRET_OF_THE_JOB", "ACTIONS_RUNTIME_TOKEN", "STUB"} & given.keys()


@pytest.mark.parametrize(
    ("phase", "code"),
    [
        ("preflight", 2),
        ("fetch", 3),
        ("fetch", 5),
        ("merge", 4),
        ("merge", 6),
        ("publish", 5),
        ("publish", 70),
        ("fetch", 1),
    ],
)
def test_the_exit_code_of_a_phase_is_the_steps_and_no_later_phase_runs(runner: Runner, phase: str, code: int) -> None:
    runner.env[f"STUB_{phase.upper()}_CODE"] = str(code)
    ran = runner.run()
    assert ran.code == code
    assert list(ran.phases())[-1] == phase


@pytest.mark.parametrize(
    ("code", "told"), [(2, False), (3, True), (4, True), (5, True), (6, True), (70, True), (130, False), (137, False)]
)
def test_the_last_phase_tells_of_failures_where_reports_were_asked_for(runner: Runner, code: int, told: bool) -> None:
    runner.env["STUB_MERGE_CODE"] = str(code)
    ran = runner.run(report="summary,check-run")
    assert ran.code == (6 if code == 137 else code)
    assert ("publish" in ran.phases()) is told


@pytest.mark.parametrize("telling", [125, 137, 5])
def test_a_failure_that_could_not_be_told_stays_what_it_was(runner: Runner, telling: int) -> None:
    runner.env |= {"STUB_MERGE_CODE": "4", "STUB_PUBLISH_CODE": str(telling)}
    ran = runner.run(report="check-run")
    assert ran.code == 4
    assert "publish" in ran.phases()


def test_an_image_that_is_here_is_not_pulled_and_another_is(runner: Runner) -> None:
    assert not [call for call in runner.run().calls if "pull" in call.arguments]
    runner.env["STUB_INSPECT_CODE"] = "1"
    again = runner.run()
    assert again.code == 0
    assert [call.arguments for call in again.calls if "pull" in call.arguments] == [["pull", "--quiet", "image:tag"]]


@pytest.mark.parametrize("named", ["cache-dir", "HF_HOME", "RUNNER_TOOL_CACHE", "HOME"])
def test_the_cache_is_where_it_is_named_else_in_the_tool_cache_else_at_home(runner: Runner, named: str) -> None:
    here = runner.root / "here"
    runner.env["RUNNER_TOOL_CACHE"] = "/proc/nowhere"
    if named != "cache-dir":
        runner.env[named] = str(here)
    ran = runner.run(cache_dir=str(here) if named == "cache-dir" else "")
    below = {"RUNNER_TOOL_CACHE": "adapter-merge", "HOME": ".cache/adapter-merge"}.get(named, ".")
    given = ran.phases()["merge"].given
    assert given["HF_HOME"] == str(here / below)
    assert given.get("INPUT_CACHE_DIR") == (str(here) if named == "cache-dir" else None)
    assert (here / below).is_dir()


@pytest.mark.parametrize(("written", "meant"), [("~/models", "home/models"), ("models", "work space/models")])
def test_a_cache_may_be_named_from_home_or_from_the_workspace(runner: Runner, written: str, meant: str) -> None:
    assert runner.run(cache_dir=written).phases()["merge"].given["HF_HOME"] == str(runner.root / meant)


def test_a_cache_of_the_jobs_own_is_mounted_with_the_folder_of_ours_beside_it(runner: Runner) -> None:
    runner.env["HF_HUB_CACHE"] = str(runner.root / "disk/hub")
    merge = runner.run().phases()["merge"]
    assert merge.given["HF_HUB_CACHE"] == f"{runner.root}/disk/hub"
    for folder in ("hub", "adapter-merge"):
        assert merge.mounts[f"{runner.root}/disk/{folder}"] == f"{runner.root}/disk/{folder}"


@pytest.mark.parametrize("cache", ["tools/hub", "home/.cache/hub", "home/hf", "temp/hub", "temp", "work space/hub"])
@pytest.mark.parametrize("home", ["", "home/hf"])
def test_wherever_the_jobs_own_cache_is_nothing_is_mounted_twice(cache: str, home: str, runner: Runner) -> None:
    runner.env |= {"HF_HUB_CACHE": str(runner.root / cache)} | ({"HF_HOME": str(runner.root / home)} if home else {})
    ran = runner.run()
    assert ran.code == 0, ran.log
    for call in ran.phases().values():
        mounts = call.mounts
        assert mounts[str(runner.root / cache)] == str(runner.root / cache), "it can be written"
        beside = str((runner.root / cache).parent / "adapter-merge")
        assert mounts[beside] == beside


def test_a_cache_beside_the_workspace_does_not_open_it(runner: Runner) -> None:
    workspace = runner.root / "adapter-merge"
    workspace.mkdir()
    runner.env |= {"GITHUB_WORKSPACE": str(workspace), "HF_HUB_CACHE": str(runner.root / "hub")}
    ran = runner.run()
    assert ran.code == 0, ran.log
    assert ran.phases()["merge"].mounts[str(workspace)] == f"{workspace},readonly"


@pytest.mark.parametrize("written", ["{root}/disk/hub/", "{root}/disk/../disk/hub", "../disk/hub", "../disk/hub//"])
def test_a_cache_of_the_jobs_own_may_be_written_in_any_way(written: str, runner: Runner) -> None:
    runner.env["HF_HUB_CACHE"] = written.format(root=runner.root)
    merge = runner.run().phases()["merge"]
    assert merge.given["HF_HUB_CACHE"] == f"{runner.root}/disk/hub"
    assert merge.mounts[f"{runner.root}/disk/adapter-merge"] == f"{runner.root}/disk/adapter-merge"
    assert not (runner.root / "disk/hub/adapter-merge").exists()


@pytest.mark.parametrize("written", ["hub", "~/hub"])
def test_a_cache_of_the_jobs_own_may_be_named_from_the_workspace_or_from_home(written: str, runner: Runner) -> None:
    runner.env["HF_HUB_CACHE"] = written
    place = runner.root / "home" if written.startswith("~") else runner.workspace
    merge = runner.run().phases()["merge"]
    assert merge.given["HF_HUB_CACHE"] == f"{place}/hub"
    assert f"{place}/adapter-merge" in merge.mounts


def test_a_cache_of_the_jobs_own_that_is_a_link_is_taken_where_it_leads(runner: Runner) -> None:
    (runner.root / "disk/hub").mkdir(parents=True)
    (runner.root / "link").symlink_to(runner.root / "disk/hub")
    runner.env["HF_HUB_CACHE"] = str(runner.root / "link")
    assert f"{runner.root}/disk/adapter-merge" in runner.run().phases()["merge"].mounts


def test_where_nothing_may_be_made_beside_the_cache_ours_lie_below_hf_home(runner: Runner) -> None:
    runner.env["HF_HUB_CACHE"] = str(runner.root / "disk/hub")
    (runner.root / "disk/hub").mkdir(parents=True)
    (runner.root / "disk/adapter-merge").write_text("not a folder")  # as one that a root-owned parent forbids
    merge = runner.run().phases()["merge"]
    assert merge.given["HF_HUB_CACHE"] == f"{runner.root}/disk/hub"
    assert f"{runner.root}/disk/adapter-merge" not in merge.mounts
    assert merge.mounts[f"{runner.root}/tools/adapter-merge"] == f"{runner.root}/tools/adapter-merge"


# --- a company's network, an enforcing system ---------------------------------------------------------------------


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy")
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def test_proxies_reach_the_containers_that_have_a_network_and_no_other(runner: Runner) -> None:
    runner.env |= {name: f"http://user:password@proxy.example:3128/{name}" for name in PROXIES}
    ran = runner.run()
    assert ran.code == 0, ran.log
    for phase, call in ran.phases().items():
        held = {name for name in PROXIES if call.given.get(name) == runner.env[name]}
        assert held == (set() if phase == "merge" else set(PROXIES)), phase
        assert "password" not in " ".join(call.arguments)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_on_the_runners_own_loopback_is_reached(name: str, runner: Runner) -> None:
    runner.env[name] = "http://me:secret@localhost:3128"
    phases = runner.run().phases()
    assert [call.values("--network") for call in phases.values()] == [["host"], ["host"], ["none"], ["host"]]
    del runner.env[name]
    runner.env["NO_PROXY"] = "http://localhost"
    assert runner.run().phases()["fetch"].values("--network") == []


def test_a_companys_certificate_is_mounted_at_its_own_path_to_be_read(runner: Runner) -> None:
    file = runner.root / "company.pem"
    file.write_text("-----BEGIN CERTIFICATE-----")
    runner.env |= dict.fromkeys(CERTIFICATES, str(file))
    ran = runner.run()
    assert ran.code == 0, ran.log
    for phase in ("preflight", "fetch", "publish"):
        call = ran.phases()[phase]
        assert call.mounts[str(file)] == f"{file},readonly"
        assert sum(str(file) in value for value in call.values("--mount")) == 1, "Docker mounts nothing twice"
        assert {call.given[name] for name in CERTIFICATES} == {str(file)}
    assert str(file) not in ran.phases()["merge"].mounts


def test_a_certificates_path_may_start_in_the_workspace(runner: Runner) -> None:
    (runner.workspace / "ca.pem").write_text("-----BEGIN CERTIFICATE-----")
    runner.env["SSL_CERT_FILE"] = "ca.pem"
    assert runner.run().phases()["fetch"].given["SSL_CERT_FILE"] == f"{runner.workspace}/ca.pem"


def test_each_folder_of_certificates_is_mounted(runner: Runner) -> None:
    for folder in ("work space/own", "company"):
        (runner.root / folder).mkdir()
    runner.env |= {"SSL_CERT_DIR": f"own:{runner.root}/company/::{runner.workspace}", "HF_HUB_CACHE": str(runner.root)}
    ran = runner.run()
    assert ran.code == 0, ran.log
    for phase in ("preflight", "fetch", "publish"):
        call = ran.phases()[phase]
        assert call.given["SSL_CERT_DIR"] == f"{runner.workspace}/own:{runner.root}/company/:{runner.workspace}"
        for folder in (f"{runner.workspace}/own", f"{runner.root}/company", str(runner.workspace)):
            assert call.mounts[folder] == f"{folder},readonly"


@pytest.mark.parametrize(
    "engine",
    [
        '{"SecurityOptions":["name=seccomp,profile=builtin","name=selinux"]}',
        '{"host":{"security":{"selinuxEnabled":true}}}',
    ],
    ids=["docker", "podman"],
)
def test_where_selinux_labels_containers_ours_have_none(engine: str, runner: Runner) -> None:
    runner.env["STUB_INFO"] = engine
    ran = runner.run()
    assert ran.code == 0, ran.log
    assert len(ran.phases()) == 4
    for call in ran.phases().values():
        assert call.values("--security-opt") == ["no-new-privileges", "label=disable"]


def test_githubs_debug_logging_reaches_every_phase(runner: Runner) -> None:
    runner.env["RUNNER_DEBUG"] = "1"
    assert {call.given["RUNNER_DEBUG"] for call in runner.run().phases().values()} == {"1"}
