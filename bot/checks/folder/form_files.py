"""What quantisers say of a form beside config.json: it goes with the form, and serving engines read it."""

from __future__ import annotations

from bot.checks.case import Case

FORM_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")  # AutoGPTQ, AutoAWQ, Model-Optimizer


def form_files(case: Case) -> list[str]:
    """What is wrong with them, in words: the base's own with the base's own form, none with any other."""
    subject = case.subject
    faults = []
    for name in FORM_FILES:
        here, there = subject.folder / name, subject.base / name
        if subject.quantize != "same" or not there.is_file():
            if here.is_file():
                faults.append(
                    f"{name} tells of a form that the weights are not stored in: who reads it takes them for others."
                )
        elif not here.is_file():
            faults.append(f"{name} is lost; the base has it, and the weights are stored in its form.")
        elif here.read_bytes() != there.read_bytes():
            faults.append(f"{name} is not the base's, and the weights are stored in its form.")
    return faults
