"""Lends environments of Gymnasium and PettingZoo to a TARS mesh.

The process dials out to Orchestration, over mutual TLS and with a caller's credential, and serves one
environment for as long as the call is open. The caller, and nobody else, finds it as `external/NAME`; over REST
the slash is escaped, as in `GET /api/v1/orchestration/environments/external%2FNAME/spaces`.

    pip install grpcio grpcio-tools numpy gymnasium pettingzoo
    tars login --data-dir /tmp/tars --username admin --password-file /tmp/tars/admin-password
    python tars_env.py CartPole-v1 --data-dir /tmp/tars
    python tars_env.py pettingzoo.butterfly.knights_archers_zombies_v10:parallel_env --data-dir /tmp/tars

From a program of one's own, with the address, the roots and the operator's certificate that `ready.json` in the
mesh's data directory names (Orchestration listens on 8094 by default):

    credentials = grpc.ssl_channel_credentials(roots, key, certificate)
    channel = grpc.secure_channel("127.0.0.1:8094", credentials)
    serve(lambda: gymnasium.make("CartPole-v1"), "cartpole", channel, lambda: [("authorization", f"Bearer {token}")])

The stubs are generated from the protos of this repository unless they can be imported.
"""

import argparse
import importlib
import json
import logging
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import grpc
import gymnasium
import numpy as np
from gymnasium import spaces

PROTOS = Path(__file__).resolve().parents[3] / "proto"


def _generate_stubs(folder):
    """Makes the stubs importable, from the protos of this repository."""
    patterns = ("tars/orchestration/**/*.proto", "tars/policy/**/*.proto", "google/api/*.proto")
    sources = [str(path.relative_to(PROTOS)) for pattern in patterns for path in sorted(PROTOS.glob(pattern))]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"--python_out={folder}"]
    subprocess.run([*command, f"--grpc_python_out={folder}", *sources], check=True)
    sys.path.insert(0, folder)


try:
    from tars.orchestration.v1 import environment_pb2, host_pb2, host_pb2_grpc
except ModuleNotFoundError:
    # Removed when the process ends.
    _STUBS = tempfile.TemporaryDirectory(prefix="tars-stubs-")
    _generate_stubs(_STUBS.name)
    from tars.orchestration.v1 import environment_pb2, host_pb2, host_pb2_grpc

LOG = logging.getLogger("tars_env")

PROTOCOL = 1
# What ends a session for good: the environment, the caller or the adapter is at fault.
FATAL = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
}
# What ends the first session, because nothing changes by itself: nobody is logged in, or the name is lent already.
# Later it is retried: a credential is renewed, and a session that was lost may still be known to the mesh.
FATAL_AT_FIRST = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.ALREADY_EXISTS}
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0


def serve(make_env, name, channel, metadata, *, max_copies=16, max_steps=None, stop=None):
    """Lends what `make_env` makes, a `gymnasium.Env` or a `pettingzoo.ParallelEnv`, until `stop` is set.

    `metadata` is called before each session and returns the credential, such as
    `[("authorization", "Bearer …")]` or `[("x-api-key", "…")]`. A session that was lost is opened again, and the
    loss is logged; one that was refused for good raises `grpc.RpcError`, and whatever the environment or
    `metadata` raises passes through.
    """
    stop = stop or threading.Event()
    pause, was_open = FIRST_PAUSE, False
    while not stop.is_set():
        session = Session(make_env, name, max_copies, max_steps)
        try:
            session.run(channel, metadata(), stop)
            ending = "it was closed by the mesh"
        except grpc.RpcError as error:
            if stop.is_set():
                return
            was_open = was_open or session.is_open
            if error.code() in FATAL or (error.code() in FATAL_AT_FIRST and not was_open):
                raise
            ending = f"{error.code().name}: {error.details()}"
            pause = FIRST_PAUSE if session.is_open else min(2 * pause, LONGEST_PAUSE)
        if not stop.is_set():
            LOG.warning("external/%s is not lent: %s; the next try is in %.1f s", name, ending, pause)
        stop.wait(pause)


class Session:
    """One session: the copies of the environment, and what they were last told."""

    def __init__(self, make_env, name, max_copies, max_steps):
        self.make_env, self.name = make_env, name
        self.max_copies, self.max_steps = max_copies, max_steps
        self.copies = {}
        self.model = Copy(make_env())
        self.is_open = False

    def run(self, channel, metadata, stop):
        requests = queue.SimpleQueue()
        requests.put(host_pb2.SessionRequest(hello=self.hello()))
        stub = host_pb2_grpc.EnvironmentHostServiceStub(channel)
        responses = stub.Session(iter(requests.get, None), metadata=metadata)
        ended = threading.Event()
        threading.Thread(target=_cancel_on, args=(stop, ended, responses), daemon=True).start()
        try:
            for response in responses:
                self.is_open = True
                if response.HasField("welcome"):
                    LOG.info("lent as %s", response.welcome.environment)
                else:
                    requests.put(self.answer(response))
        finally:
            ended.set()
            requests.put(None)
            responses.cancel()
            for copy in [self.model, *self.copies.values()]:
                copy.env.close()

    def hello(self):
        return host_pb2.HostHello(
            protocol_version=PROTOCOL,
            name=self.name,
            agents=[_agent_spaces(agent) for agent in self.model.agents],
            max_copies=self.max_copies,
            max_steps=self.max_steps,
        )

    def answer(self, response):
        if response.HasField("reset"):
            order = response.reset
            rows = []
            for at, index in enumerate(order.copies):
                copy = self.copies.get(index) or Copy(self.make_env())
                self.copies[index] = copy
                rows.append(copy.reset(order.seed + at))
            agents = [host_pb2.AgentReset(**_now(agent, [row[at] for row in rows])) for at, agent in enumerate(self.model.agents)]
            return host_pb2.SessionRequest(reset=host_pb2.HostReset(id=order.id, agents=agents))
        order = response.step
        actions = [_unpack(tensor) for tensor in order.actions]
        rows = []
        for at, index in enumerate(order.copies):
            rows.append(self.copies[index].step([of_agent[at] for of_agent in actions]))
        agents = [host_pb2.AgentStep(**_outcome(agent, [row[at] for row in rows])) for at, agent in enumerate(self.model.agents)]
        return host_pb2.SessionRequest(step=host_pb2.HostStep(id=order.id, agents=agents))


def _cancel_on(stop, ended, responses):
    while not ended.wait(0.1):
        if stop.is_set():
            responses.cancel()
            return


class Agent:
    """One agent's spaces, and how its observations and actions are written as numbers."""

    def __init__(self, name, observation, action):
        self.name, self.action = name, action
        # The convention of PettingZoo: the mask is a part of the observation.
        self.is_masked = isinstance(observation, spaces.Dict) and "action_mask" in observation.spaces
        self.observation = observation["observation"] if self.is_masked else observation
        self.box = spaces.flatten_space(self.observation)
        if not isinstance(self.box, spaces.Box):
            raise TypeError(f"{name}: observations of {self.observation} have no fixed length")
        if not isinstance(action, (spaces.Discrete, spaces.Box)):
            raise TypeError(f"{name}: actions of {action} are neither discrete nor continuous")

    def observe(self, observation, info):
        """The observation as numbers, and the mask of the actions, if there is one."""
        mask = info.get("action_mask") if isinstance(self.action, spaces.Discrete) else None
        if self.is_masked:
            mask, observation = observation["action_mask"], observation["observation"]
        flat = spaces.flatten(self.observation, observation)
        return np.asarray(flat, dtype="<f4"), None if mask is None else np.asarray(mask, dtype=bool)

    def act(self, action):
        """The action that the environment takes."""
        if isinstance(self.action, spaces.Discrete):
            return self.action.start + int(action)
        return action.reshape(self.action.shape).astype(self.action.dtype)


class Copy:
    """One copy of an environment. An agent that is done before the others observes zeros and gets no reward
    until the episode has ended for all of them."""

    def __init__(self, env):
        self.env = _Parallel(env) if isinstance(env, gymnasium.Env) else env
        space = lambda name: (self.env.observation_space(name), self.env.action_space(name))
        self.agents = [Agent(name, *space(name)) for name in self.env.possible_agents]
        self.ends = {}

    def reset(self, seed=None):
        """Begins an episode; returns what each agent observes, and its mask."""
        self.ends = {}
        observations, infos = self.env.reset(seed=seed)
        return [self._see(agent, observations, infos) for agent in self.agents]

    def _see(self, agent, observations, infos):
        if agent.name not in observations:
            return np.zeros(agent.box.shape, dtype="<f4"), None
        return agent.observe(observations[agent.name], infos.get(agent.name, {}))

    def step(self, actions):
        """Takes an action of each agent; returns, for each, what it sees now and what came of it."""
        joint = zip(self.agents, actions)
        actions = {agent.name: agent.act(action) for agent, action in joint if agent.name in self.env.agents}
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        for name in actions:
            if terminated.get(name) or truncated.get(name):
                self.ends.setdefault(name, "terminated" if terminated.get(name) else "truncated")
        is_over = not self.env.agents or all(agent.name in self.ends for agent in self.agents)
        seen = [self._see(agent, observations, infos) for agent in self.agents]
        ends = [self.ends.get(agent.name, "truncated") if is_over else None for agent in self.agents]
        now = self.reset() if is_over else seen
        rewards = [float(rewards.get(agent.name, 0.0)) for agent in self.agents]
        return list(zip(now, rewards, ends, seen))


class _Parallel:
    """An environment of Gymnasium with the interface of one of PettingZoo."""

    possible_agents = ["agent"]

    def __init__(self, env):
        self.env, self.agents = env, []

    def observation_space(self, _):
        return self.env.observation_space

    def action_space(self, _):
        return self.env.action_space

    def reset(self, seed=None):
        self.agents = ["agent"]
        observation, info = self.env.reset(seed=seed)
        return {"agent": observation}, {"agent": info}

    def step(self, actions):
        outcome = self.env.step(actions["agent"])
        _, _, terminated, truncated, _ = outcome
        if terminated or truncated:
            self.agents = []
        return tuple({"agent": part} for part in outcome)

    def close(self):
        self.env.close()


def _tensor(array, dtype, code):
    array = np.ascontiguousarray(array, dtype=code)
    return host_pb2.Tensor(dtype=dtype, shape=array.shape, data=array.tobytes())


def _numbers(rows):
    return _tensor(rows, host_pb2.DTYPE_F32, "<f4")


def _flags(rows):
    return _tensor(rows, host_pb2.DTYPE_BOOL, np.uint8)


def _unpack(tensor):
    code = "<u4" if tensor.dtype == host_pb2.DTYPE_U32 else "<f4"
    return np.frombuffer(tensor.data, dtype=code).reshape(tuple(tensor.shape))


def _now(agent, seen):
    """What an agent sees in each copy."""
    fields = {"observations": _numbers([observation for observation, _ in seen])}
    masks = [mask for _, mask in seen]
    if any(mask is not None for mask in masks):
        everything = np.ones(agent.action.n, dtype=bool)
        fields["masks"] = _flags([everything if mask is None else mask for mask in masks])
    return fields


def _outcome(agent, steps):
    """What an agent sees in each copy, and what it got there."""
    fields = _now(agent, [now for now, _, _, _ in steps])
    ends = [end for _, _, end, _ in steps]
    fields["rewards"] = _numbers([reward for _, reward, _, _ in steps])
    fields["terminated"] = _flags([end == "terminated" for end in ends])
    fields["truncated"] = _flags([end == "truncated" for end in ends])
    if any(ends):
        fields["final_observations"] = _numbers([seen for _, _, _, (seen, _) in steps])
    return fields


def _component(name, low, high):
    component = environment_pb2.Component(name=name, unit="1")
    # A component that is always the same has no bounds to speak of.
    if low < high and np.isfinite(low):
        component.low = low
    if low < high and np.isfinite(high):
        component.high = high
    return component


def _components(box, prefix):
    bounds = zip(box.low.flatten(), box.high.flatten())
    return [_component(f"{prefix}{at}", float(low), float(high)) for at, (low, high) in enumerate(bounds)]


def _agent_spaces(agent):
    described = environment_pb2.AgentSpaces(agent=agent.name, observation=_components(agent.box, "observation_"))
    if isinstance(agent.action, spaces.Discrete):
        names = [str(agent.action.start + at) for at in range(agent.action.n)]
        described.discrete.CopyFrom(environment_pb2.DiscreteSpace(actions=names))
    else:
        components = _components(agent.action, "action_")
        described.continuous.CopyFrom(environment_pb2.ContinuousSpace(components=components))
    return described


def _arguments():
    parser = argparse.ArgumentParser(
        description="Lends an environment of Gymnasium or PettingZoo to a mesh, as external/NAME, until it is interrupted.",
        epilog="The credential is the API key in TARS_API_KEY, or else what the token command prints.",
    )
    parser.add_argument("env", help="a Gymnasium id such as CartPole-v1, or MODULE:FUNCTION that makes a ParallelEnv")
    parser.add_argument("--data-dir", required=True, type=Path, help="the data directory of the mesh, which has ready.json")
    parser.add_argument("--name", help="what it is lent as [default: made from the environment's]")
    parser.add_argument("--copies", type=int, default=16, help="how many copies are made at most [default: 16]")
    parser.add_argument("--token-command", help="prints an access token [default: tars token --data-dir DIR]")
    return parser.parse_args()


def _maker(env):
    """A function that makes the environment."""
    module, _, function = env.partition(":")
    if function and not re.search(r"-v\d+$", function):
        return getattr(importlib.import_module(module), function)
    # Gymnasium imports an environment's module when it is first made.
    gymnasium.make(env).close()
    return lambda: gymnasium.make(env)


def _channel(ready):
    parts = (Path(ready[name]).read_bytes() for name in ("ca", "client_key", "client_cert"))
    return grpc.secure_channel(ready["orchestration"].removeprefix("https://"), grpc.ssl_channel_credentials(*parts))


def _credential(command):
    if key := os.environ.get("TARS_API_KEY"):
        return [("x-api-key", key)]
    token = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    return [("authorization", f"Bearer {token}")]


def main():
    given = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    name = given.name or re.sub(r"[^a-z0-9]+", "-", given.env.lower())[-32:].strip("-")
    default = ["tars", "token", "--data-dir", str(given.data_dir)]
    command = shlex.split(given.token_command) if given.token_command else default
    if not os.environ.get("TARS_API_KEY") and not shutil.which(command[0]):
        sys.exit(f"tars_env: {command[0]} is no program on the PATH: name it by --token-command, or set TARS_API_KEY")
    try:
        ready = json.loads((given.data_dir / "ready.json").read_text())
    except FileNotFoundError:
        sys.exit(f"tars_env: {given.data_dir} has no ready.json: is `tars up --data-dir {given.data_dir}` running here?")
    try:
        serve(_maker(given.env), name, _channel(ready), lambda: _credential(command), max_copies=given.copies)
    except KeyboardInterrupt:
        sys.exit(130)
    except grpc.RpcError as error:
        sys.exit(f"tars_env: external/{name} cannot be lent: {error.code().name}: {error.details()}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"tars_env: there is no token: {shlex.join(error.cmd)} exited with {error.returncode}")
    except (OSError, AttributeError, ImportError, gymnasium.error.Error) as error:
        sys.exit(f"tars_env: {error}")


if __name__ == "__main__":
    main()
