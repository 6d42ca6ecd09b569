"""What a merge that is shared out costs on so many machines, reckoned from rates that were measured elsewhere.

    python bench/share_out_cost.py [--gigabytes 689] [--files 163] [--down 100] [--up 50] [--make 250] [--price 0.36]

`--down`, `--up`: megabytes a second between a machine and the Hub; `--make`: megabytes a second that a machine merges and proves
(bench/proof.py: a gigabyte in about 4 processor seconds, by two cores at the level weights); `--price`: of a machine, an hour. The
three stages run beside each other (bench/stream.py has what that costs more: `--overlap`); every machine has its setting up, and
one of them makes the commit.
"""

from __future__ import annotations

import argparse

MACHINES = (1, 8, 64)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("gigabytes", 689.0), ("files", 163), ("down", 100.0), ("up", 50.0), ("make", 250.0), ("price", 0.36),
        ("overlap", 1.15), ("set-up", 150.0), ("commit", 120.0),
    ):  # fmt: skip
        asked.add_argument(f"--{name}", type=type(default), default=default)
    given = asked.parse_args()
    total, each = given.gigabytes * 1000, given.gigabytes * 1000 / given.files
    print(f"{given.gigabytes:g} GB in {given.files} files of {each / 1000:.1f} GB; {given.down:g} MB/s down, {given.up:g} MB/s up, "
          f"{given.make:g} MB/s merged and proven; {given.price:g} an hour")  # fmt: skip
    print("| machines | files each | fetched and sent each (GB) | disk each (GB) | hours | machine hours | price |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for machines in MACHINES:
        most = -(-given.files // machines)  # the slowest machine has the most files
        stages = (each * most / rate for rate in (given.down, given.make, given.up))
        seconds = given.set_up + max(stages) * given.overlap + each / given.down + each / given.up
        hours = (seconds + given.commit) / 3600
        busy = (
            given.set_up * machines + total / min(given.down, given.make, given.up) * given.overlap + given.commit
        ) / 3600
        print(f"| {machines} | {most} | {2 * each * most / 1000:.0f} | {3 * each / 1000:.0f} | {hours:.1f} | {busy:.1f} | "
              f"{busy * given.price:.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
