"""A pool of `tidegate serve` on Ray Serve: `serve run tidegate_app:app`, as README.md says.

Ray keeps the replicas, gives them more or fewer machines by the requests that wait, and sends the requests of one session to
the replica that has its cache. Everything else is Tidegate's.
"""

import asyncio
import json
import os
import tempfile

import httpx
from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse

PROGRAM = os.environ.get("TIDEGATE_PROGRAM", "tidegate")
ARGUMENTS = os.environ.get("TIDEGATE_ARGUMENTS", "").split()
SLOTS = int(os.environ.get("TIDEGATE_SLOTS", "4"))
MOST_REPLICAS = int(os.environ.get("TIDEGATE_MOST_REPLICAS", "4"))
CPUS = float(os.environ.get("TIDEGATE_CPUS", "1"))
# Requests beyond the slots of a replica that wait in it while more replicas are started.
QUEUE = 4 * SLOTS
# Of one connection only; whoever forwards sets its own.
HOP = {"connection", "content-length", "date", "host", "keep-alive", "transfer-encoding", "origin"}


@serve.deployment(
    max_ongoing_requests=SLOTS + QUEUE,
    autoscaling_config={
        "min_replicas": 1,
        "max_replicas": MOST_REPLICAS,
        # More than its slots means that requests wait.
        "target_ongoing_requests": SLOTS,
        "upscale_delay_s": 3,
        "downscale_delay_s": 120,
    },
    ray_actor_options={"num_cpus": CPUS},
    health_check_period_s=10,
    graceful_shutdown_timeout_s=60,
)
class Tidegate:
    """One program, and the requests that are sent to it."""

    async def __init__(self):
        self.data = tempfile.TemporaryDirectory(prefix="tidegate-")
        self.process = await asyncio.create_subprocess_exec(
            *[PROGRAM, "serve", "--listen", "127.0.0.1:0", "--data", self.data.name],
            # Ray counts what waits. One that was left may be in the queue for a moment more.
            *["--slots", str(SLOTS), "--queue", str(2 * QUEUE), *ARGUMENTS],
            stderr=asyncio.subprocess.PIPE,
        )
        first = (await self.process.stderr.readline()).decode()
        if not first.startswith("listening on "):
            raise RuntimeError(f"tidegate did not start: {first}")
        self.log = asyncio.create_task(self.follow())
        self.client = httpx.AsyncClient(base_url=first.split()[2], timeout=None)
        self.name = serve.get_replica_context().replica_id.unique_id

    async def follow(self):
        while line := await self.process.stderr.readline():
            print(line.decode(), end="")

    async def check_health(self):
        """Ray replaces a replica for which this fails. One that loads or is full is well."""
        state = (await self.client.get("/health", timeout=5)).json()
        if state["status"] == "broken":
            raise RuntimeError(state["reason"])

    @serve.multiplexed(max_num_models_per_replica=1000)
    async def session(self, name: str) -> str:
        """Tells Ray that this replica has that session."""
        return name

    async def answer(self, method: str, path: str, headers: list, body: bytes):
        """Status and headers as JSON, then the body as it comes."""
        if name := serve.get_multiplexed_model_id():
            await self.session(name)
        async with self.client.stream(method, path, headers=headers, content=body) as reply:
            kept = [(key, value) for key, value in reply.headers.items() if key not in HOP]
            yield json.dumps([reply.status_code, [*kept, ("x-tidegate-replica", self.name)]]).encode()
            async for piece in reply.aiter_raw():
                yield piece

    async def __del__(self):
        if self.process.returncode is None:
            # Answers that run are ended first.
            self.process.terminate()
            await self.process.wait()


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class Front:
    """Hands each request to the replica of its session, else to one that is free."""

    def __init__(self, pool):
        self.pool = pool

    async def __call__(self, request: Request):
        body = await request.body()
        options = {"stream": True}
        if session := request.headers.get("x-session-id") or session_of(body):
            options["multiplexed_model_id"] = session
        headers = [(key, value) for key, value in request.headers.items() if key not in HOP]
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        pieces = self.pool.options(**options).answer.remote(request.method, path, headers, body)
        status, kept = json.loads(await anext(pieces))
        return StreamingResponse(pieces, status_code=status, headers=dict(kept))


def session_of(body: bytes) -> str | None:
    """What clients name a session by: `prompt_cache_key`, or the user."""
    try:
        call = json.loads(body)
        return call.get("prompt_cache_key") or call.get("user")
    except (ValueError, AttributeError):
        return None


app = Front.bind(Tidegate.bind())
