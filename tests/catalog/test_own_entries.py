"""The list of the suite's own entries is that of the checkout."""

from __future__ import annotations

from immunebench.catalog.loading import load_catalog
from immunebench.catalog.own_entries import OWN, code_digest, is_own


def test_the_list_holds_every_entry_of_the_checkout_as_it_is_and_no_other() -> None:
    catalog = load_catalog()
    entries = [*catalog.defenses.values(), *catalog.attacks.values()]
    found = {code_digest(entry.files): entry.code for entry in entries if entry.files}
    lines = "".join(f'    "{digest}": "{name}",\n' for digest, name in sorted(found.items(), key=lambda item: item[1]))
    assert dict(OWN) == found, f"read the changed entries, then list them in catalog/own_entries.py:\n{lines}"


def test_another_byte_makes_a_stranger() -> None:
    files = load_catalog().attack("lora").files
    assert is_own(files) and is_own({})
    assert not is_own({**files, "attack.py": "0" * 64}) and not is_own({**files, "more.py": "0" * 64})
