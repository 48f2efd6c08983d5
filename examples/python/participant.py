"""A bank that takes part in sagas: one service, one SQLite database, and a barrier of two statements.

    quorate dev                                          # in one terminal
    python participant.py --id bank-1 --port 8101        # in another
    quorate saga begin --wait --payload '{"account": "alice", "cents": -500}' \\
        --step "quorate:///bank/bank.Bank/Move quorate:///bank/bank.Bank/Undo"

Requests are bytes to the cluster; here they are JSON, so that the command line can make some.
"""

import argparse
import json
import signal
import sqlite3
import sys
import threading
from concurrent import futures

import grpc

from quorate_client import Client, QuorateError, Registration
from quorate_proto import records

DEV = "127.0.0.1:7650,127.0.0.1:7660,127.0.0.1:7670"
UNDOES = {"compensate": "action", "cancel": "try"}


class Bank:
    def __init__(self, path: str):
        self.path = path
        with self.open() as db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS barrier"
                " (gid TEXT, branch TEXT, op TEXT, PRIMARY KEY (gid, branch, op))"
            )
            db.execute("CREATE TABLE IF NOT EXISTS account (name TEXT PRIMARY KEY, cents INTEGER)")
            db.executemany(
                "INSERT OR IGNORE INTO account VALUES (?, 100000)", [("alice",), ("bob",)]
            )

    def open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=10)

    def move(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return self.once(request, context, sign=1)

    def undo(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return self.once(request, context, sign=-1)

    def once(self, request: bytes, context: grpc.ServicerContext, sign: int) -> bytes:
        call = dict(context.invocation_metadata())
        gid = f"{call['quorate-namespace']}|{call['quorate-gid']}"
        branch, op = call["quorate-branch"], call["quorate-op"]
        wanted = json.loads(request)
        db = self.open()
        try:
            # What was done and that it was done: one transaction.
            db.execute("BEGIN IMMEDIATE")
            what = self.barrier(db, gid, branch, op)
            if what == "hanging":
                context.abort(grpc.StatusCode.ABORTED, "it was taken back before")
            if what == "go":
                moved = db.execute(
                    "UPDATE account SET cents = cents + ? WHERE name = ? AND cents + ? >= 0",
                    [sign * wanted["cents"], wanted["account"], sign * wanted["cents"]],
                )
                if moved.rowcount == 0:
                    # Nothing was done: without the commit the mark goes too.
                    context.abort(grpc.StatusCode.ABORTED, "no such account, or not enough")
            db.commit()
            row = db.execute("SELECT cents FROM account WHERE name = ?", [wanted["account"]])
            print(f"{gid} {branch} {op} #{call['quorate-attempt']}: {what}", flush=True)
            # The answer: those who come after get it.
            return json.dumps({"cents": row.fetchone()[0]}).encode()
        finally:
            db.close()

    @staticmethod
    def barrier(db: sqlite3.Connection, gid: str, branch: str, op: str) -> str:
        def insert(op: str) -> bool:
            mark = "INSERT OR IGNORE INTO barrier VALUES (?, ?, ?)"
            return db.execute(mark, [gid, branch, op]).rowcount == 1

        def there(op: str) -> bool:
            mark = "SELECT 1 FROM barrier WHERE gid = ? AND branch = ? AND op = ?"
            return db.execute(mark, [gid, branch, op]).fetchone() is not None

        nothing_to_undo = op in UNDOES and insert(UNDOES[op])
        if not insert(op):
            late = any(there(undo) for undo, origin in UNDOES.items() if origin == op)
            return "hanging" if late else "duplicate"
        return "empty compensation" if nothing_to_undo else "go"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--endpoints", default=DEV, help="host:port,... [default: of quorate dev]")
    parser.add_argument("--id", default="bank-1")
    parser.add_argument("--port", type=int, default=8101)
    parser.add_argument("--database", default="bank.sqlite")
    options = parser.parse_args()

    bank = Bank(options.database)
    methods = {
        "Move": grpc.unary_unary_rpc_method_handler(bank.move),
        "Undo": grpc.unary_unary_rpc_method_handler(bank.undo),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bank.Bank", methods)])
    server.add_insecure_port(f"127.0.0.1:{options.port}")
    server.start()

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    client = Client(options.endpoints.split(","), say=print)
    endpoint = records.Endpoint(name="grpc", host="127.0.0.1", port=options.port)
    instance = records.Instance(service="bank", id=options.id, endpoints=[endpoint])
    try:
        registration = Registration(client, instance, 10.0)
    except QuorateError as error:
        print(f"not registered: {error}")
        return 1
    print("the bank is open", flush=True)
    stop.wait()
    registration.close()
    server.stop(5).wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
