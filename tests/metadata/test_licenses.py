"""The card's license stands for everything that was merged, or says that none does; and the Hub knows its id."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from bot.errors import Usage
from bot.metadata import hub_lists, licenses
from bot.metadata.license_fields import state
from bot.records import Asset
from tests.publish.given import SHA, source

HOME, HUB = "https://hub.example/me/merged", "https://hub.example"


def stated(base: Any, adapter: Any, asked: str | None = None, *, assets: tuple[Asset, ...] = (), **more: Any) -> Any:
    """What a card states; `base` and `adapter` are a license or a whole metadata block."""
    cards = [card if isinstance(card, dict) else {"license": card} for card in (base, adapter)]
    given = [source(role, f"me/{role}", card=card) for role, card in zip(("base", "adapter"), cards, strict=True)]
    return state(given[0], given[1:], asked, assets=assets, home=HOME, hub=HUB, **more)


@pytest.mark.parametrize(
    ("written", "known"),
    [
        ("Apache 2.0", "apache-2.0"), ("Apache License, Version 2.0", "apache-2.0"), ("apache2", "apache-2.0"),
        ("MIT License", "mit"), ("CC BY NC 4.0", "cc-by-nc-4.0"), ("CC-BY-NC-SA-4.0", "cc-by-nc-sa-4.0"),
        ("Llama 3.1 Community License Agreement", "llama3.1"), ("llama-2", "llama2"), ("GPL v3", "gpl-3.0"),
        ("GPL-3.0-only", "gpl-3.0"), ("Gemma Terms of Use", "gemma"), ("OpenRAIL++", "openrail++"),
        ("GPL-3.0-or-later", None), ("BSL 1.1", None), ("apache", None), ("proprietary", None), ("", None),
        ("creative commons", None), ("llama", None), ("MIT or Apache 2.0", None),
    ],
)  # fmt: skip
def test_an_id_is_found_where_what_was_written_can_mean_no_other(written: str, known: str | None) -> None:
    assert licenses.known_id(written) == known


@pytest.mark.parametrize("name", hub_lists.licenses())
def test_every_listed_license_is_itself_by_id_and_by_its_full_name(name: str) -> None:
    assert licenses.known_id(name.upper()) == name
    assert licenses.known_id(hub_lists.licenses()[name]) in (name, None)


@pytest.mark.parametrize(
    ("base", "adapter", "card"),
    [
        ("mit", "mit", "mit"), ("cc-by-nc-4.0", "mit", "cc-by-nc-4.0"), ("mit", "cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("apache-2.0", "mit", "apache-2.0"), ("mit", "apache-2.0", "apache-2.0"), ("bsd-3-clause", "mit", "bsd-3-clause"),
        ("llama3.1", "apache-2.0", "llama3.1"), ("gemma", "cc-by-4.0", "gemma"), ("bigcode-openrail-m", "mit", "bigcode-openrail-m"),
        ("gpl-3.0", "apache-2.0", "gpl-3.0"), ("cc-by-4.0", "cc-by-sa-4.0", "cc-by-sa-4.0"), ("cc0-1.0", "mit", "mit"),
        ("cc-by-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0"), ("apache-2.0", None, "apache-2.0"), (None, "mit", "mit"),
        ("llama3", "gemma", "llama3-and-gemma"), ("gpl-2.0", "apache-2.0", "gpl-2.0-and-apache-2.0"),
        ("cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0-and-cc-by-nc-4.0"), ("cc-by-4.0", "apache-2.0", "cc-by-4.0-and-apache-2.0"),
        ("cc-by-nc-4.0", "llama3", "cc-by-nc-4.0-and-llama3"), ("unknown", "mit", "unknown-and-mit"),
        (["mit", "apache-2.0"], "mit", "apache-2.0"), ("my own", "mit", "my-own"),
    ],
)  # fmt: skip
def test_the_stricter_of_the_two_binds_and_without_an_order_both_are_named(base: Any, adapter: Any, card: str) -> None:
    found = stated(base, adapter)
    if card in hub_lists.licenses():
        assert found.fields == {"license": card}
    else:
        assert (found.fields["license"], found.fields["license_name"]) == ("other", card)
    for said in {str(base), str(adapter)} & hub_lists.licenses().keys():
        assert said in found.words


def test_no_license_that_asks_less_ever_stands_for_one_that_asks_more() -> None:
    """What may be sold, closed or changed under the result's license may be so under each input's."""
    for one, other in product(hub_lists.licenses(), repeat=2):
        chosen = licenses.stricter(licenses.Terms(id=one, stated=one), licenses.Terms(id=other, stated=other))
        if chosen is None:
            continue
        left = other if chosen.id == one else one
        for limit in ("-nc", "-nd", "-sa"):
            assert limit not in left or limit in chosen.id, (one, other, chosen)
        if left != chosen.id:
            free = (*licenses.PUBLIC, *licenses.BY, "mit", "isc", "bsd-2-clause", "bsd-3-clause", "apache-2.0")
            assert left in free or left.startswith("cc-by-nc-"), (one, other, chosen)


def test_the_order_has_no_circle() -> None:
    for one, other in product(hub_lists.licenses(), repeat=2):
        both = licenses._asks_all_of(one, other) and licenses._asks_all_of(other, one)
        same = any({one, other} <= set(step) for step in (licenses.PUBLIC, *licenses.NOTICE))
        assert one == other or not both or same, (one, other)


def test_license_wins_and_the_card_then_says_what_the_inputs_had() -> None:
    found = stated("cc-by-nc-4.0", "mit", "Apache 2.0")
    assert found.fields == {"license": "apache-2.0"}
    assert found.words == "apache-2.0, as asked for (the base's is cc-by-nc-4.0; the adapter's is mit)"
    other = stated("llama3", "mit", "other")
    assert other.fields == {"license": "other", "license_name": "llama3-and-mit"}


@pytest.mark.parametrize("asked", ["Apache 3", "my-license", "mitt", "", "x" * 500, "a\nb"])
def test_an_id_that_the_hub_does_not_know_is_a_usage_error_with_a_way_out(asked: str) -> None:
    with pytest.raises(Usage) as caught:
        stated("mit", "mit", asked)
    assert hub_lists.LICENSES_PAGE in caught.value.remedy
    assert ("such as mit" in caught.value.remedy) == (asked == "mitt")


def test_a_license_of_no_known_name_is_called_other_by_that_name() -> None:
    found = stated({"license": "other", "license_name": "My License 1.0", "license_link": "https://x.example/l"}, "mit")
    assert found.fields == {"license": "other", "license_name": "my-license-1.0", "license_link": "https://x.example/l"}
    found = stated(None, "Proprietary (ACME)")
    assert found.fields["license_name"] == "proprietary-acme"
    assert "The Hub lists no license 'Proprietary (ACME)'" in found.notes[0]


def asset(name: str, role: Any = "base", original: str | None = None) -> Asset:
    return Asset(name=name, source=role, why="license", original=original)


@pytest.mark.parametrize(
    ("link", "assets", "said"),
    [
        ("LICENSE", (asset("LICENSE"),), "LICENSE"),
        (None, (asset("LICENSE"),), "LICENSE"),
        ("LICENSE.txt", (asset("LICENSE.txt"),), f"{HOME}/blob/main/LICENSE.txt"),
        ("LICENSE", (), f"{HUB}/me/base/blob/{SHA}/LICENSE"),
        ("docs/my terms.md", (), f"{HUB}/me/base/blob/{SHA}/docs/my%20terms.md"),
        ("../../secret", (), None), ("javascript:alert(1)", (), None), ("https://a b", (), None), (7, (), None),
        ("https://x.example/terms?a=1", (asset("LICENSE"),), "https://x.example/terms?a=1"),
    ],
)  # fmt: skip
def test_a_license_file_that_goes_along_is_linked_in_the_result(link: Any, assets: Any, said: str | None) -> None:
    base = {"license": "other", "license_name": "own", "license_link": link}
    assert stated(base, "mit", assets=assets).fields.get("license_link") == said


def test_the_adapters_file_is_linked_by_the_name_it_got() -> None:
    adapter = {"license": "other", "license_name": "own", "license_link": "LICENSE"}
    files = (asset("LICENSE"), asset("LICENSE.adapter", "adapter", "LICENSE"))
    assert stated("mit", adapter, assets=files).fields["license_link"] == f"{HOME}/blob/main/LICENSE.adapter"


def test_two_licenses_without_a_name_are_not_one() -> None:
    links = ["https://a.example/terms", "https://b.example/terms"]
    cards = [{"license": "other", "license_link": link} for link in links]
    apart, same = stated(*cards), stated(cards[0], cards[0])
    assert all(link in apart.words for link in links)
    assert "none stands for the others" in apart.words
    assert same.fields["license_link"] == links[0]
    assert not same.notes


def test_a_base_that_states_no_license_is_remarked_on() -> None:
    assert stated(None, "mit").notes == ("The base states no license; the card's is mit. --license states another.",)
    assert not stated("mit", None).notes


def test_a_license_without_derivatives_is_remarked_on() -> None:
    assert "does not let a changed work be shared" in stated("cc-by-nc-nd-4.0", "mit").notes[-1]
    assert not stated("cc-by-nc-4.0", "cc-by-nc-4.0").notes
