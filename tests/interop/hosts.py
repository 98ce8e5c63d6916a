"""Lends environments of Gymnasium and PettingZoo from Python, until its input ends."""

import functools
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv
from pettingzoo.test import parallel_api_test

ready = json.loads(Path(sys.argv[1]).read_text())
protos = Path(sys.argv[2])

out = tempfile.mkdtemp()
sources = sorted(str(p.relative_to(protos)) for p in protos.glob("tars/**/*.proto"))
sources += ["google/api/annotations.proto", "google/api/http.proto"]
subprocess.run(
    [sys.executable, "-m", "grpc_tools.protoc", "-I", str(protos), "--python_out", out, "--grpc_python_out", out]
    + sources,
    check=True,
)
sys.path[:0] = [out, str(protos.parent / "deploy/examples/python")]

import grpc
import tars_env
from tars.auth.v1 import admin_pb2, admin_pb2_grpc, auth_pb2, auth_pb2_grpc
from tars.orchestration.v1 import environment_pb2, environment_pb2_grpc


class Hunt(ParallelEnv):
    """The hunter may not do what it did last, and gets a point for the action 2. The hare leaves after three
    steps; the episode ends after six."""

    metadata = {"name": "hunt"}
    possible_agents = ["hare", "hunter"]

    @functools.cache
    def observation_space(self, agent):
        sight = spaces.Box(-1, 1, (2,))
        masked = {"observation": sight, "action_mask": spaces.MultiBinary(3)}
        return spaces.Dict(masked) if agent == "hunter" else sight

    @functools.cache
    def action_space(self, agent):
        return spaces.Discrete(3) if agent == "hunter" else spaces.Box(-1, 1, (1,))

    def reset(self, seed=None, options=None):
        self.agents, self.steps, self.last = list(self.possible_agents), 0, None
        return self.see(), {agent: {} for agent in self.agents}

    def see(self):
        sight = np.array([self.steps / 6, 0.5], dtype=np.float32)
        mask = np.array([action != self.last for action in range(3)], dtype=np.int8)
        seen = {"hunter": {"observation": sight, "action_mask": mask}, "hare": -sight}
        return {agent: seen[agent] for agent in self.agents}

    def step(self, actions):
        assert set(actions) == set(self.agents), actions
        if masked := actions["hunter"] == self.last:
            raise ValueError(f"{masked}: the mask forbids {self.last}")
        self.last, self.steps = actions["hunter"], self.steps + 1
        rewards = {agent: float(agent == "hunter" and self.last == 2) for agent in self.agents}
        terminated = {agent: agent == "hare" and self.steps == 3 for agent in self.agents}
        truncated = {agent: self.steps == 6 for agent in self.agents}
        outcome = (self.see(), rewards, terminated, truncated, {agent: {} for agent in self.agents})
        self.agents = [a for a in self.agents if not terminated[a] and not truncated[a]]
        return outcome


class Unmasked(Hunt):
    """For PettingZoo's own test, which draws actions without regard to masks."""

    def step(self, actions):
        self.last = None
        return super().step(actions)


parallel_api_test(Unmasked(), num_cycles=50)

# The adapter alone: what a copy reports when agents leave and episodes end.
copy = tars_env.Copy(Hunt())
(hare, _), (hunter, mask) = copy.reset(seed=1)
assert hare.tolist() == [0, -0.5] and hunter.tolist() == [0, 0.5] and mask.all()
for step in range(1, 7):
    hare, hunter = copy.step([np.zeros(1, dtype="<f4"), step % 3])
    (_, mask), _, _, _ = hunter
    assert mask.tolist() == [step == 6 or action != step % 3 for action in range(3)], (step, mask)
    gone, ended = step > 3, step == 6
    assert hare[3][0].any() != gone and hare[1] == 0, (step, hare)
    assert (hare[2], hunter[2]) == (("terminated", "truncated") if ended else (None, None)), step
assert hunter[3][0].tolist() == [1, 0.5] and hunter[0][0].tolist() == [0, 0.5]


def channel(service):
    credentials = grpc.ssl_channel_credentials(
        Path(ready["ca"]).read_bytes(),
        Path(ready["client_key"]).read_bytes(),
        Path(ready["client_cert"]).read_bytes(),
    )
    return grpc.secure_channel(ready[service].removeprefix("https://"), credentials)


auth = auth_pb2_grpc.AuthServiceStub(channel("auth"))


def bearer(username, password):
    token = auth.Login(auth_pb2.LoginRequest(username=username, password=password)).access_token
    return [("authorization", f"Bearer {token}")]


admin = bearer("admin", Path(ready["admin_password_file"]).read_text())
users = admin_pb2_grpc.UserServiceStub(channel("auth"))
users.CreateUser(
    admin_pb2.CreateUserRequest(username="hopper", password="a long password", roles=["developer"]), metadata=admin
)
hopper = lambda: bearer("hopper", "a long password")

stop, failures = threading.Event(), []


class Fragile(gymnasium.Wrapper):
    """Fails once, in the middle of an episode."""

    failed = False

    def step(self, action):
        outcome = super().step(action)
        if not Fragile.failed and self.env.unwrapped.steps_beyond_terminated is None and self.env._elapsed_steps == 5:
            Fragile.failed = True
            raise ConnectionError("the simulator is gone")
        return outcome


def lend(make_env, name):
    def work():
        while not stop.is_set():
            try:
                tars_env.serve(make_env, name, channel("orchestration"), hopper, max_copies=32, stop=stop)
            except ConnectionError:
                continue
            except Exception as error:
                failures.append((name, error))
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


# Gymnasium imports an environment's module when it is first made, which is not for threads.
taxi = next(name for name in ("Taxi-v4", "Taxi-v3") if name in gymnasium.registry)
for name in ("CartPole-v1", "Pendulum-v1", taxi):
    gymnasium.make(name).close()
lent = [
    lend(lambda: gymnasium.make("CartPole-v1"), "cartpole"),
    lend(lambda: gymnasium.make("Pendulum-v1"), "pendulum"),
    lend(lambda: gymnasium.make(taxi), "taxi"),
    lend(lambda: Fragile(gymnasium.make("CartPole-v1")), "fragile"),
    lend(Hunt, "hunt"),
]
credential = hopper()
environments = environment_pb2_grpc.EnvironmentServiceStub(channel("orchestration"))
for _ in range(600):
    listed = environments.ListEnvironments(environment_pb2.ListEnvironmentsRequest(), metadata=credential)
    if failures or sum(name.startswith("external/") for name in listed.environments) == len(lent):
        break
    time.sleep(0.05)
assert not failures, failures
spaces_of = environment_pb2.DescribeSpacesRequest(environment="external/hunt")
hunt = environments.DescribeSpaces(spaces_of, metadata=credential).environment
assert [agent.agent for agent in hunt.agents] == Hunt.possible_agents
assert hunt.agents[0].continuous.components[0].high == 1 and list(hunt.agents[1].discrete.actions) == ["0", "1", "2"]


def refused(name, metadata):
    """Why the first session of an environment is refused for good."""
    try:
        tars_env.serve(lambda: gymnasium.make("CartPole-v1"), name, channel("orchestration"), metadata, stop=stop)
    except grpc.RpcError as error:
        return error.code()


assert refused("cartpole", hopper) == grpc.StatusCode.ALREADY_EXISTS
assert refused("other", lambda: [("authorization", "Bearer nonsense")]) == grpc.StatusCode.UNAUTHENTICATED
print("owner", auth.GetMe(auth_pb2.GetMeRequest(), metadata=credential).user_id, flush=True)
sys.stdin.read()
stop.set()
for thread in lent:
    thread.join()
assert not failures, failures
assert Fragile.failed
print("ok")
