"""What is installed is whole: the wheel has all that the service reads beside its code."""

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.servers import REPOSITORY

PAGE = REPOSITORY / "service" / "ingress" / "asyncapi"


def test_the_wheel_has_the_description_of_the_amqp_interface(tmp_path: Path) -> None:
    """As files of its own: in a clone it is a link out of the package."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    [built] = tmp_path.glob("*.whl")
    wanted = [path for path in PAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    with zipfile.ZipFile(built) as wheel:
        assert {path.name for path in wanted} >= {"asyncapi.yaml", "index.html", "page.js", "index.js", "LICENSE"}
        for path in wanted:
            assert wheel.read(str(path.relative_to(REPOSITORY))) == path.read_bytes()
    assert (PAGE / "asyncapi.yaml").resolve() == REPOSITORY / "schemas" / "asyncapi.yaml"
