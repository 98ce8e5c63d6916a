"""Writes the vectors beside this file from the reference implementations.

    python3 -m venv venv && venv/bin/pip install "gymnasium==0.29.1" "numpy<2" && venv/bin/python generate.py
"""

import json
import pathlib

import gymnasium
import numpy as np

HERE = pathlib.Path(__file__).parent


def write(name, vectors):
    (HERE / f"{name}.json").write_text(json.dumps(vectors, separators=(",", ":")) + "\n")


def run(env, start, actions, dtype=None):
    """Plays from a given state and records what the environment returns."""
    env.reset(seed=0)
    env.state = tuple(start) if dtype is None else np.array(start, dtype=dtype)
    observations, rewards, terminated = [], [], []
    for action in actions:
        seen, reward, last, _, _ = env.step(action)
        observations.append([float(np.float32(x)) for x in seen])
        rewards.append(float(reward))
        terminated.append(bool(last))
        if last:
            break
    return {
        "start": [float(x) for x in start],
        "actions": np.asarray(actions).reshape(len(actions), -1)[: len(rewards), 0].tolist(),
        "observations": observations,
        "rewards": rewards,
        "terminated": terminated,
    }


def cartpole(rng):
    env = gymnasium.make("CartPole-v1").unwrapped
    starts = rng.uniform(-0.05, 0.05, (3, 4)).tolist()
    plays = [[0, 1] * 40, rng.integers(0, 2, 60).tolist(), [1] * 20]
    write("cartpole", [run(env, s, a) for s, a in zip(starts, plays)])


def pendulum(rng):
    env = gymnasium.make("Pendulum-v1").unwrapped
    starts = [[3.0, -0.5], [-0.3, 1.0], [1.5, 7.9]]
    plays = [rng.uniform(-2, 2, (80, 1)).astype(np.float32) for _ in starts]
    write("pendulum", [run(env, s, a, np.float64) for s, a in zip(starts, plays)])


def acrobot(rng):
    env = gymnasium.make("Acrobot-v1").unwrapped
    starts = [rng.uniform(-0.1, 0.1, 4).tolist(), [2.0, 0.5, 3.0, -6.0], [-1.0, 2.0, 12.0, 25.0]]
    plays = [rng.integers(0, 3, 80).tolist() for _ in starts]
    write("acrobot", [run(env, s, a, np.float64) for s, a in zip(starts, plays)])


def taxi():
    env = gymnasium.make("Taxi-v3").unwrapped
    rows = [[env.P[s][a][0][1:] for a in range(6)] for s in range(500)]
    transitions = [[(int(n), int(r), bool(t)) for n, r, t in row] for row in rows]
    masks = [env.action_mask(s).tolist() for s in range(500)]
    starts = np.flatnonzero(env.initial_state_distrib).tolist()
    write("taxi", {"transitions": transitions, "masks": masks, "starts": starts})


if __name__ == "__main__":
    generator = np.random.default_rng(20)
    cartpole(generator)
    pendulum(generator)
    acrobot(generator)
    taxi()
