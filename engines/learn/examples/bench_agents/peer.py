"""Environment steps per CPU second of Stable-Baselines3, for one algorithm and environment.

The hyperparameters, the network and the update ratio are given as JSON on standard input, so that both
sides learn equally much for a step:

    {"algorithm": "ppo", "environment": "CartPole-v1", "steps": 20000, "seed": 1, "hidden": [64, 64],
     "arguments": {"n_steps": 128, ...}}

The answer is one line of JSON: {"steps", "cpu_s", "steps_per_cpu_s", "predict_us"}. Time is the CPU time of
this thread while it learns; torch has one thread.
"""

import json
import sys
import time

import numpy
import torch
from stable_baselines3 import A2C, DDPG, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise

ALGORITHMS = {"a2c": A2C, "ddpg": DDPG, "dqn": DQN, "ppo": PPO}
PREDICTIONS = 2_000


def model_of(wanted):
    copies = wanted.get("copies", 1)
    environment = make_vec_env(wanted["environment"], n_envs=copies, seed=wanted["seed"])
    arguments = dict(wanted["arguments"])
    if "noise" in arguments:
        actions = environment.action_space.shape[-1]
        sigma = arguments.pop("noise") * numpy.ones(actions)
        arguments["action_noise"] = OrnsteinUhlenbeckActionNoise(numpy.zeros(actions), sigma)
    return ALGORITHMS[wanted["algorithm"]](
        "MlpPolicy",
        environment,
        policy_kwargs={"net_arch": wanted["hidden"]},
        seed=wanted["seed"],
        device="cpu",
        verbose=0,
        **arguments,
    )


def predict_us(model):
    observation = model.get_env().reset()[:1]
    times = []
    for _ in range(PREDICTIONS):
        started = time.perf_counter()
        model.predict(observation, deterministic=True)
        times.append(time.perf_counter() - started)
    return float(numpy.median(times)) * 1e6


def main():
    torch.set_num_threads(1)
    wanted = json.load(sys.stdin)
    model = model_of(wanted)
    started = time.thread_time()
    model.learn(total_timesteps=wanted["steps"])
    cpu = time.thread_time() - started
    steps = model.num_timesteps
    answer = {
        "steps": steps,
        "cpu_s": cpu,
        "steps_per_cpu_s": steps / cpu,
        "predict_us": predict_us(model),
    }
    print(json.dumps(answer))


main()
