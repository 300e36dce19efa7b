"""The committed protobuf modules are what the contract generates."""

import subprocess
import sys
from pathlib import Path

import pytest

PROTO = Path(__file__).parent.parent / "proto"
CONTRACT = "matchbus/v1/matchbus.proto"
MODULES = ("matchbus_pb2.py", "matchbus_pb2.pyi", "matchbus_pb2_grpc.py")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the modules made anew from the contract."""
    out = tmp_path_factory.mktemp("generated")
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *outputs, CONTRACT], check=True)
    return out / "matchbus" / "v1"


@pytest.mark.parametrize("module", MODULES)
def test_committed_module_is_what_the_contract_generates(module: str, generated: Path) -> None:
    """Nobody edits a generated module, or the contract without generating again."""
    committed = (PROTO / "matchbus" / "v1" / module).read_text()
    assert committed == (generated / module).read_text()
