"""A small client of Quorate: sessions, registration, discovery and watches.

It shows what a client in any language has to do, in the order in which it matters:

1. call any node, and another one when it does not answer; every node takes every call;
2. when a node says NO_LEADER and names the leader, go there;
3. repeat a write only when that is safe: because it carries an exactly-once id, or because the error
   says that it certainly did not take place;
4. keep the session alive three times in its TTL, and register again when it is lost.

The Rust client in `src/client` does the same, and more.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2, status_pb2

from quorate_proto import common, records, registry, registry_grpc, session, session_grpc

# What may pass when the same call is sent again, here or to another node.
RETRYABLE = {
    "NO_LEADER",
    "OVERLOADED",
    "TIMEOUT",
    "SHUTTING_DOWN",
    "LEADER_CHANGED",
    "TOO_MANY_IN_FLIGHT",
}
# How long one node may take before a call that can be repeated goes to another one.
ATTEMPT_SECONDS = 1.5


class QuorateError(Exception):
    """Why a call failed, and whether a write certainly did not take place (`definite`)."""

    def __init__(self, error: grpc.RpcError):
        self.code: grpc.StatusCode = error.code()
        self.reason = ""
        self.metadata: dict[str, str] = {}
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                self._read(value)
        self.definite = self.metadata.get("definite") == "true"
        # Of what the transport says the last part tells why.
        details = error.details() or ""
        super().__init__(details if self.reason else f"{self.code.name}, {details.split(': ')[-1]}")

    def _read(self, value: bytes) -> None:
        info = error_details_pb2.ErrorInfo()
        for detail in status_pb2.Status.FromString(value).details:
            if detail.Unpack(info) and info.domain == "quorate":
                self.reason, self.metadata = info.reason, dict(info.metadata)

    @property
    def leader(self) -> str | None:
        """Where the node believes the leader to be."""
        return self.metadata.get("leader")

    @property
    def retryable(self) -> bool:
        if self.reason:
            return self.reason in RETRYABLE
        # No node has said anything: the connection failed.
        return self.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Client:
    def __init__(
        self,
        endpoints: list[str],
        timeout: float = 5.0,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.timeout = timeout
        self._say = say
        self._endpoints = list(endpoints)
        self._channels: dict[str, grpc.Channel] = {}
        self._lock = threading.Lock()
        # The node that is asked first: the one that answered last, or that was called the leader.
        self._node = random.choice(self._endpoints)

    def close(self) -> None:
        with self._lock:
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()

    # ---- which node ----

    def channel(self, node: str) -> grpc.Channel:
        with self._lock:
            if node not in self._channels:
                options = [
                    # A node that is frozen keeps its connections: it is found by its silence.
                    ("grpc.keepalive_time_ms", 5_000),
                    ("grpc.keepalive_timeout_ms", 2_000),
                    ("grpc.http2.max_pings_without_data", 0),
                    ("grpc.initial_reconnect_backoff_ms", 100),
                    ("grpc.max_reconnect_backoff_ms", 1_000),
                ]
                self._channels[node] = grpc.insecure_channel(node, options=options)
            return self._channels[node]

    def node(self) -> str:
        with self._lock:
            return self._node

    def turn_from(self, node: str, error: QuorateError, silent: set[str]) -> None:
        """Chooses the node for the next attempt: the leader if it was named, else another one.

        `silent` are those that have not answered; a node that names one of them as the leader does not
        know yet that it is gone.
        """
        with self._lock:
            if not error.reason:
                silent.add(node)
            if self._node != node:
                return  # Another thread has chosen.
            if error.leader and error.leader != node and error.leader not in silent:
                self._node = error.leader
                if error.leader not in self._endpoints:
                    self._endpoints.append(error.leader)
                return
            others = [other for other in self._endpoints if other != node]
            self._node = random.choice([o for o in others if o not in silent] or others or [node])

    # ---- calls ----

    def call(self, stub, method: str, request, repeatable: bool):
        """One call with its repetitions, until it is answered or `timeout` has passed."""
        deadline = time.monotonic() + self.timeout
        attempt = 0
        silent: set[str] = set()
        while True:
            node = self.node()
            left = deadline - time.monotonic()
            patience = min(left, ATTEMPT_SECONDS) if repeatable else left
            try:
                send = getattr(stub(self.channel(node)), method)
                answer = send(request, timeout=max(patience, 0.01))
                if attempt > 0:
                    self._say(f"{method}: answered by {node} at attempt {attempt + 1}")
                return answer
            except grpc.RpcError as failure:
                error = QuorateError(failure)
            if attempt == 0 and error.retryable:
                self._say(f"{method}: {node}: {error}; trying on")
            # A full queue is full for every node.
            if error.retryable and error.reason != "OVERLOADED":
                self.turn_from(node, error, silent)
            if not error.retryable or not (repeatable or error.definite):
                raise error
            # Exponential, at most half a second, and at random, so that many clients do not come at once.
            pause = random.uniform(0, min(0.5, 0.01 * 2**attempt))
            attempt += 1
            if time.monotonic() + pause >= deadline:
                raise error
            time.sleep(pause)

    def discover(self, service: str, namespace: str = "") -> list[records.Instance]:
        """The instances that should get calls: enabled, not critical, with a weight."""
        request = registry.ListInstancesRequest(
            namespace=namespace,
            service=service,
            filter=registry.InstanceFilter(healthy_only=True),
        )
        answer = self.call(registry_grpc.RegistryStub, "ListInstances", request, repeatable=True)
        return list(answer.instances)

    def watch(
        self, service: str, namespace: str = "", stop: threading.Event | None = None
    ) -> Iterator["Update"]:
        """What there is, then every change, in order, none twice, over as many nodes as it takes."""
        revision = 0
        silent: set[str] = set()
        while not (stop and stop.is_set()):
            node = self.node()
            request = registry.WatchRequest(
                namespace=namespace, service=service, after_revision=revision
            )
            partial: list = []
            try:
                stream = registry_grpc.RegistryStub(self.channel(node)).Watch(request)
                for message in stream:
                    silent.clear()
                    if message.snapshot:
                        partial.extend(message.events)
                        if message.more:
                            continue
                        events, partial = partial, []
                    else:
                        events = list(message.events)
                    # A message of its own for each revision: what comes again is dropped.
                    seen = message.revision == revision and not message.snapshot
                    if message.revision < revision or seen:
                        continue
                    revision = message.revision
                    if message.snapshot or events:
                        yield Update(revision, message.snapshot, events)
                    if stop and stop.is_set():
                        stream.cancel()
                        return
            except grpc.RpcError as failure:
                error = QuorateError(failure)
                if not error.retryable and error.reason != "WATCH_LAGGED":
                    raise error from None
                if not silent:
                    self._say(f"watch: {node}: {error}; going on after revision {revision}")
                self.turn_from(node, error, silent)
            time.sleep(random.uniform(0, 0.2))


@dataclass
class Update:
    revision: int
    # True: `events` are all there is, and what was known before is void.
    snapshot: bool
    events: list


class Session:
    """A lease, and the scope of exactly-once ids. One write at a time."""

    def __init__(self, client: Client, name: str, ttl: float = 10.0):
        self._client = client
        request = session.OpenSessionRequest(ttl_ms=int(ttl * 1_000), client=name)
        # Opening twice leaves a session that nobody keeps alive: it ends by itself.
        answer = client.call(session_grpc.SessionsStub, "Open", request, repeatable=True)
        self.id: int = answer.session
        self.ttl = answer.ttl_ms / 1_000
        # Set when the cluster has said that the session is gone, or when it was closed.
        self.ended = threading.Event()
        self._sequence = 0
        self._writing = threading.Lock()
        self._keeper = threading.Thread(target=self._keep, name=f"session {self.id}", daemon=True)
        self._keeper.start()

    def write(self, method: str, request):
        """A write of the registry that takes place once, however often it has to be sent."""
        with self._writing:
            self._sequence += 1
            request.request_id.CopyFrom(
                common.RequestId(
                    session=self.id,
                    sequence=self._sequence,
                    # All before this one are answered, or given up.
                    lowest_unacknowledged=self._sequence,
                )
            )
            try:
                return self._client.call(registry_grpc.RegistryStub, method, request, repeatable=True)
            except QuorateError as error:
                if error.reason == "SESSION_EXPIRED":
                    self.ended.set()
                raise

    def close(self) -> None:
        """Ends the session: its instances are deregistered at once."""
        self.ended.set()
        request = session.CloseSessionRequest(session=self.id)
        self._client.call(session_grpc.SessionsStub, "Close", request, repeatable=True)

    def _keep(self) -> None:
        request = session.KeepAliveRequest(session=self.id)
        # Only the cluster can say that the session has expired: while it cannot be reached, nobody
        # else can take what hangs on it either.
        while not self.ended.wait(self.ttl / 3):
            try:
                self._client.call(session_grpc.SessionsStub, "KeepAlive", request, repeatable=True)
            except QuorateError as error:
                if error.reason == "SESSION_EXPIRED":
                    self.ended.set()


class Registration:
    """Keeps an instance registered until it is closed, through lost sessions too."""

    def __init__(self, client: Client, instance: records.Instance, ttl: float = 10.0):
        self._client = client
        self._instance = instance
        self._ttl = ttl
        self._closing = threading.Event()
        self._session: Session | None = None
        self._say = client._say
        while True:
            try:
                self._register()
                break
            except QuorateError as error:
                # The process before this one died less than its TTL ago.
                if error.reason != "OWNED_BY_ANOTHER":
                    raise
                self._say(f"{error}; waiting for its end")
                time.sleep(1.0)
        self._keeper = threading.Thread(target=self._keep, name="registration", daemon=True)
        self._keeper.start()

    def _register(self) -> None:
        if self._session is None or self._session.ended.is_set():
            name = f"python {self._instance.service}/{self._instance.id}"
            self._session = Session(self._client, name, self._ttl)
        # An instance with a session lives as long as the session does.
        self._instance.session = self._session.id
        answer = self._session.write(
            "Register", registry.RegisterRequest(instance=self._instance)
        )
        self._say(
            f"registered {self._instance.service}/{self._instance.id} at revision "
            f"{answer.mod_revision} (session {self._session.id})"
        )

    def _keep(self) -> None:
        while not self._closing.is_set():
            if not self._session.ended.wait(0.2):
                continue
            if self._closing.is_set():
                return
            self._say(f"session {self._session.id} is lost; registering again")
            try:
                self._register()
            except QuorateError as error:
                self._say(f"not registered: {error}; trying again")
                self._closing.wait(random.uniform(0.2, 1.0))

    def close(self) -> None:
        self._closing.set()
        self._keeper.join()
        self._session.close()
