"""The messages and stubs of Quorate's public API, generated from `proto/` when this is imported.

Generated code is not kept: it goes into a temporary directory that ends with the process. A program of
your own would rather generate once, when it is built, with the same arguments.
"""

import atexit
import importlib
import os
import pathlib
import shutil
import sys
import tempfile

import grpc_tools
from grpc_tools import protoc

_HERE = pathlib.Path(__file__).resolve().parent
# The files of this repository, unless they are said to be elsewhere.
_PROTO = pathlib.Path(os.environ.get("QUORATE_PROTO", _HERE.parent.parent / "proto"))


def _generate() -> None:
    sources = sorted(str(path.relative_to(_PROTO)) for path in _PROTO.glob("quorate/v1/*.proto"))
    if not sources:
        raise RuntimeError(f"no quorate/v1/*.proto below {_PROTO}; set QUORATE_PROTO")
    target = tempfile.mkdtemp(prefix="quorate-proto-")
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    arguments = [
        "protoc",
        f"--proto_path={_PROTO}",
        # Where google/protobuf/*.proto are.
        f"--proto_path={pathlib.Path(grpc_tools.__file__).parent / '_proto'}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed; it has said why")
    sys.path.insert(0, target)


_generate()

common = importlib.import_module("quorate.v1.common_pb2")
records = importlib.import_module("quorate.v1.records_pb2")
registry = importlib.import_module("quorate.v1.registry_pb2")
registry_grpc = importlib.import_module("quorate.v1.registry_pb2_grpc")
session = importlib.import_module("quorate.v1.session_pb2")
session_grpc = importlib.import_module("quorate.v1.session_pb2_grpc")
