"""Where the merged folder goes, what it may replace, and how it gets its name: a folder that has its name is complete and proven."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path

from bot.errors import Usage
from bot.partial_folder import left_behind, locked_partial_dir
from bot.records import Report, Request


def scratch_folder(scratch: Path, fingerprint: str, target: str | None) -> Path:
    """Our own folder for one merge to one target: two targets of the same merge never share it."""
    return scratch / "merged" / hashlib.sha256(f"{fingerprint} {target}".encode()).hexdigest()[:16]


def drop_scratch(folder: Path, fingerprint: str) -> None:
    """Remove what a run that was killed after its commit left in its scratch folder; not where another run is using it."""
    if folder.is_dir() or left_behind(folder):
        with suppress(Usage), locked_partial_dir(folder, fingerprint) as partial:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(partial, ignore_errors=True)


def refuse_to_overwrite(request: Request) -> None:
    """Raise Usage where the output would take the place of something that is not an earlier merge of ours."""
    output = request.output
    if output is None:
        return  # a scratch folder is an earlier run's, killed between its merge and its upload
    refs = [ref for ref in (request.adapter, *request.more, request.base) if ref is not None]
    inputs = [ref.folder for ref in refs if ref.folder is not None]
    precious = [folder.resolve() for folder in (Path.cwd(), Path.home(), *inputs)]
    here = output.resolve()
    if any(here == folder or here in folder.parents for folder in precious):
        raise Usage(f"{output} is, or holds, a folder that must stay.", remedy="Name a new folder with --output.")
    if not output.exists():
        return
    if not request.force:
        raise Usage(f"{output} exists.", remedy="Name another --output, or pass --force to replace it.")
    if not (output / "verification.json").is_file():
        raise Usage(
            f"{output} exists and is not a merge of ours.",
            remedy="Name another --output; --force replaces merges only.",
        )


def finish(partial: Path, output: Path, report: Report, request: Request) -> Path:
    """Give the folder its name: the one asked for only when it is proven."""
    if report.verdict != "verified":
        output = output.with_name(output.name + ".unverified")
        shutil.rmtree(output, ignore_errors=True)
    else:
        refuse_to_overwrite(request)  # hours may have passed
    if not output.exists():
        return partial.rename(output)
    aside = output.with_name(f".{output.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    output.rename(aside)
    partial.rename(output)
    shutil.rmtree(aside)
    return output
