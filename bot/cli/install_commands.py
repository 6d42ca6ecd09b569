"""`bot install`, `bot status`, `bot uninstall`: the bot's webhook on the Hub."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bot.cli.bot_commands import ALLOWED, SECRET, STATE
from bot.cli.click_options import SPEAKING, fields
from bot.cli.option_groups import Command, Group
from bot.cli.printing import print_json, print_text
from bot.cli.requests import the_hub
from bot.dispatch.backend_choice import BackendOptions, state_file
from bot.errors import Usage

URL = click.option("--url", metavar="URL", help="The server's address, as the Hub reaches it.")
JOBS = click.option("--jobs", is_flag=True, help="Without a server: each event starts a Hugging Face Job.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")


@click.group(cls=Group, name="bot")
def bot() -> None:
    """The bot's webhook on the Hub: make it, look at it, remove it."""


@bot.command(cls=Command)
@URL
@JOBS
@ALLOWED
@click.option(
    "--secret-file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the webhook's secret here, for its owner only; one that is there is used. Default: it is printed once.",
)
@fields(BackendOptions)
@click.option(
    "--option",
    "wanted",
    metavar="NAME=VALUE",
    multiple=True,
    help="With --jobs: an option of each run, as dtype=float16.",
)
@click.option("--force", is_flag=True, help="Also where nothing has changed: a new secret, and the token anew.")
@DRY_RUN
@SPEAKING
def install(
    url: str | None,
    jobs: bool,
    allow: tuple[str, ...],
    tags: tuple[str, ...],
    secret_file: Path | None,
    wanted: tuple[str, ...],
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **chosen: Any,
) -> int:
    """Make the webhook that tells the bot of tags, or make the one there is as it should be."""
    from bot.dispatch.allow import Allowed
    from bot.dispatch.install import WantedBot, kept_secret, template, to_be_added, webhook_url
    from bot.dispatch.install import install as install_webhook

    if bool(url) == jobs:
        raise Usage("It is not clear where the webhook leads.", remedy="Name a server with --url, or pass --jobs.")
    allowed, options, hub = Allowed.of(allow, tags), BackendOptions(**chosen), the_hub()
    kept = kept_secret(secret_file, dry_run=dry_run)[0] if secret_file and url else os.environ.get(SECRET) or None
    made = WantedBot(
        allowed=allowed, url=webhook_url(url) if url else None, secret=kept if url else None, force=force,
        job=template(hub, options, wanted, os.environ) if jobs else None,
    )  # fmt: skip
    done = install_webhook(hub, made, dry_run=dry_run)
    steps = to_be_added(options.backend, options.github_repo, allowed.repos, secret_file) if url else []
    if as_json:
        print_json(asdict(done) | {"dry_run": dry_run, "to_be_added": steps})
        return 0
    would = "would be " if dry_run else ""
    verb = {"create": "created", "update": "changed", "none": "as it should be already"}[done.action]
    print_text(
        f"The webhook {f'{done.webhook} ' if done.webhook else ''}is {would}{verb}.".replace("is would", "would")
    )
    if done.why:
        print_text(f"Why: {'; '.join(done.why)}.")
    if not quiet:
        print_text(f"It watches {', '.join(f'{kind} {name}' for kind, name in done.watched)}.")
        leads = done.url or f"a Job in {made.job.image} ({made.job.flavor})" if made.job else done.url
        print_text(f"It leads to {leads}.")
    if done.secret:
        print_text(f"Its secret, which is shown this once: {done.secret}")
    elif secret_file and url and not dry_run:
        print_text(f"Its secret is in {secret_file}.")
    for step in steps if not quiet else ():
        print_text(step)
    return 0


@bot.command(cls=Command)
@URL
@STATE
@SPEAKING
def status(url: str | None, state: Path | None, as_json: bool, quiet: bool, debug: bool) -> int:
    """Show the webhook, the last deliveries, and what is stuck."""
    from bot.dispatch.install import look_at_state, our_webhooks, webhook_url

    hub, path = the_hub(), state or state_file(os.environ)
    webhooks, seen = our_webhooks(hub, webhook_url(url) if url else None), look_at_state(path)
    if as_json:
        print_json({"webhooks": [asdict(webhook) for webhook in webhooks], "state": asdict(seen) if seen else None})
        return 0
    if not webhooks:
        print_text("This account has no webhook of the bot: adapter-merge bot install makes one.")
    for webhook in webhooks:
        watched = ", ".join(f"{kind} {name}" for kind, name in webhook.watched)
        leads = webhook.url or f"a Job in {webhook.image} ({webhook.flavor})"
        print_text(
            f"Webhook {webhook.id}: {'disabled' if webhook.disabled else 'enabled'}, watches {watched}, leads to {leads}"
        )
        if webhook.disabled:
            again = f"--url {webhook.url}" if webhook.url else "--jobs"
            print_text(
                "  The Hub disables a webhook whose deliveries fail again and again. Once the cause is mended, enable it: "
                f"adapter-merge bot install {again} --allow …, or at {hub.address}/settings/webhooks.",
                "remark",
            )
    if seen is None:
        print_text(f"There is no state file {path} on this machine.")
        return 0
    print_text(f"Requests: {', '.join(f'{number} {name}' for name, number in sorted(seen.counts.items())) or 'none'}.")
    for line in seen.deliveries if not quiet else ():
        print_text(f"  {line}")
    for line in seen.stuck:
        print_text(f"Stuck: {line}", "remark")
    return 0


@bot.command(cls=Command)
@URL
@JOBS
@DRY_RUN
@SPEAKING
def uninstall(url: str | None, jobs: bool, dry_run: bool, as_json: bool, quiet: bool, debug: bool) -> int:
    """Remove the bot's webhook from the Hub. What was merged stays, and so does the state file."""
    from bot.dispatch.install import uninstall as remove
    from bot.dispatch.install import webhook_url

    removed = remove(the_hub(), webhook_url(url) if url else None, jobs=jobs, dry_run=dry_run)
    if as_json:
        print_json({"removed": [asdict(webhook) for webhook in removed], "dry_run": dry_run})
        return 0
    for webhook in removed:
        print_text(f"The webhook {webhook.id} ({webhook.url or 'a Job'}) {'would be' if dry_run else 'is'} removed.")
    return 0
