"""The formal model holds, and each of its variants fails, as docs/model.md says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "spec" / "model"
WITHIN_S = 600
"""It takes less than a minute, on a machine that has nothing else to do."""


@pytest.mark.system
def test_the_model_holds_and_its_variants_fail() -> None:
    """Laws L1 to L5, for every order of events in small configurations."""
    missing = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"the formal model is not checked: {' and '.join(missing)} not found")
    checked = subprocess.run(
        [sys.executable, MODEL / "check.py", "--fast"],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_page_on_the_model_tells_of_each_variant() -> None:
    """Every macro that takes a rule away is explained."""
    sources = "".join(path.read_text() for path in MODEL.glob("*.pml"))
    page = (ROOT / "docs" / "model.md").read_text()
    code = (MODEL / "check.py").read_text()
    variants = re.findall(r'without\(\s*"([A-Z_]+)"', code)
    assert variants
    for variant in variants:
        assert f"`{variant}`" in page
        assert re.search(rf"#ifn?def {variant}\b", sources)
