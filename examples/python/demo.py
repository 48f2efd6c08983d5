"""Registers an instance, finds its siblings and prints each change of the service until Ctrl-C.

    quorate dev                                   # in one terminal
    python demo.py --id web-1 --port 8001         # in another
    python demo.py --id web-2 --port 8002         # and in a third
"""

import argparse
import signal
import sys
import threading
import time

from quorate_client import Client, QuorateError, Registration
from quorate_proto import records

DEV = "127.0.0.1:7650,127.0.0.1:7660,127.0.0.1:7670"


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


def described(instance: records.Instance) -> str:
    addresses = ",".join(f"{endpoint.host}:{endpoint.port}" for endpoint in instance.endpoints)
    health = records.Health.Name(instance.health).removeprefix("HEALTH_").lower()
    admin = records.Admin.Name(instance.admin).removeprefix("ADMIN_").lower()
    state = f"{health}, {admin}, weight {instance.weight}"
    return f"{instance.id} at {addresses}: {state} ({instance.reason})"


def follow(client: Client, service: str, stop: threading.Event) -> None:
    """Prints each change, and who gets calls after it."""
    try:
        for update in client.watch(service, stop=stop):
            if update.snapshot:
                say(f"revision {update.revision}: all there is")
            for event in update.events:
                kind = event.WhichOneof("record")
                if kind == "instance" and event.deleted:
                    say(f"revision {update.revision}: {event.instance.id} is gone")
                elif kind == "instance":
                    say(f"revision {update.revision}: {described(event.instance)}")
                else:
                    say(f"revision {update.revision}: the settings of the service")
            healthy = [instance.id for instance in client.discover(service)]
            say(f"  calls go to: {', '.join(healthy) or 'nobody'}")
    except QuorateError as error:
        if not stop.is_set():
            say(f"the watch has ended: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--endpoints", default=DEV, help="host:port,... [default: of quorate dev]")
    parser.add_argument("--service", default="web")
    parser.add_argument("--id", default="web-1")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--ttl", type=float, default=10.0, help="of the session, in seconds")
    options = parser.parse_args()

    client = Client(options.endpoints.split(","), say=say)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())

    instance = records.Instance(
        service=options.service,
        id=options.id,
        endpoints=[records.Endpoint(name="http", host=options.host, port=options.port)],
        metadata={"language": "python"},
        reason="demo.py",
    )
    try:
        registration = Registration(client, instance, options.ttl)
    except QuorateError as error:
        say(f"not registered: {error}")
        return 1
    watcher = threading.Thread(target=follow, args=(client, options.service, stop), daemon=True)
    watcher.start()
    stop.wait()
    try:
        registration.close()
        say(f"deregistered {options.service}/{options.id}")
    except QuorateError as error:
        say(f"not deregistered, it ends with its session in {options.ttl} s: {error}")
        return 1
    finally:
        client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
