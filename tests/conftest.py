from pathlib import Path

import pytest

# Beside the repository, not in it: photographs and lists whose licences keep them out of the project.
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of photographs and lists; tests that ask for it carry the marker `shared`."""
    if not (SHARED / "photos").is_dir():
        pytest.skip(f"needs the photographs and lists of {SHARED}")
    return SHARED
