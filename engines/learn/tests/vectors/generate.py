"""Writes the vectors beside this file: what PyTorch, in double precision, computes for the same networks,
losses and optimiser. Parameters are in the order of `Net`: each layer's weights, a row for each input, and
its bias.

    python3 -m venv venv && venv/bin/pip install torch numpy && venv/bin/python generate.py

The present ones are of PyTorch 1.13.1 and NumPy 1.24.2.
"""

import json
import pathlib

import numpy as np
import torch
from torch.nn import functional as F

HERE = pathlib.Path(__file__).parent
INPUTS, HIDDEN, ACTIONS = 3, 8, 3
RNG = np.random.default_rng(12)

torch.set_default_dtype(torch.float64)


def rounded(value):
    """Nine digits, which determine a number of single precision."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, (list, tuple, np.ndarray)):
        return [rounded(part) for part in value]
    return float(f"{value:.9g}") if isinstance(value, (float, np.floating)) else value


def write(name, vectors):
    text = json.dumps(rounded(vectors), separators=(",", ":"), default=int)
    (HERE / f"{name}.json").write_text(text + "\n")


def single(array):
    """Numbers that single precision has, so that both sides begin with the same."""
    return torch.tensor(np.asarray(array, dtype=np.float32).astype(np.float64))


def normal(*shape, scale=1.0):
    return single(scale * RNG.standard_normal(shape))


def layer(inputs, outputs):
    weights = normal(inputs, outputs, scale=1.2 / inputs**0.5)
    return [p.requires_grad_() for p in (weights, normal(outputs, scale=0.3))]


def flat(parts):
    return torch.cat([p.detach().reshape(-1) for p in parts]).clone()


def gradient(params):
    return torch.cat([p.grad.reshape(-1) for p in params]).clone()


def dense(x, params, at):
    return x @ params[2 * at] + params[2 * at + 1]


def trunk(x, params, activation, at=0):
    return activation(dense(activation(dense(x, params, at)), params, at + 1))


def net():
    """Forward passes, and the gradient of half the sum of the squares of the outputs."""
    cases = []
    for name, activation in [("tanh", torch.tanh), ("relu", torch.relu)]:
        params = layer(INPUTS, HIDDEN) + layer(HIDDEN, HIDDEN) + layer(HIDDEN, ACTIONS)
        start, inputs = flat(params), normal(5, INPUTS)
        outputs = dense(trunk(inputs, params, activation), params, 2)
        (0.5 * outputs.square()).sum().backward()
        case = {"activation": name, "params": start, "inputs": inputs.reshape(-1)}
        cases.append({**case, "outputs": outputs.reshape(-1), "gradient": gradient(params)})
    write("net", {"hidden": HIDDEN, "cases": cases, "adam": adam()})


def adam():
    """Steps of the optimiser with clipping and an L2 penalty."""
    params = normal(12).requires_grad_()
    optimiser = torch.optim.Adam([params], lr=0.05, eps=1e-5, weight_decay=0.02)
    vectors = {"params": params.detach().clone(), "rate": 0.05, "epsilon": 1e-5, "weight_decay": 0.02}
    vectors |= {"max_norm": 2.0, "steps": []}
    for at in range(6):
        given = normal(12, scale=0.3 + 0.2 * at)
        params.grad = given.clone()
        norm = torch.nn.utils.clip_grad_norm_([params], 2.0)
        optimiser.step()
        step = {"gradient": given, "norm": float(norm), "params": params.detach().clone()}
        vectors["steps"].append(step)
    return vectors


def transitions(count, width):
    """Transitions between random states; the last ones are final."""
    return {
        "observations": normal(count, INPUTS),
        "nexts": normal(count, INPUTS),
        "rewards": normal(count, scale=2.0),
        "terminated": np.arange(count) >= count - 3,
        "picks": [RNG.integers(0, count, width).tolist() for _ in range(4)],
    }


def plain(vectors):
    """With tensors as lists of rows."""
    return {name: part.tolist() if hasattr(part, "tolist") else part for name, part in vectors.items()}


def action_values(x, params, dueling):
    features = trunk(x, params, torch.relu)
    first = dense(features, params, 2)
    if not dueling:
        return first
    return first + dense(features, params, 3) - first.mean(1, keepdim=True)


def dqn(double, dueling):
    """Steps on minibatches with weights, masks and final states; the gradient of the first one is clipped."""
    rows, max_norm = 8, 0.5
    heads = lambda: layer(HIDDEN, ACTIONS) + (layer(HIDDEN, 1) if dueling else [])
    create = lambda: layer(INPUTS, HIDDEN) + layer(HIDDEN, HIDDEN) + heads()
    online, target = create(), create()
    data = transitions(12, rows)
    actions = torch.tensor(RNG.integers(0, ACTIONS, 12))
    masks = RNG.random((12, ACTIONS)) < 0.6
    masks[np.arange(12), RNG.integers(0, ACTIONS, 12)] = True
    case = plain(data) | {"double": double, "dueling": dueling, "rows": rows, "hidden": HIDDEN}
    case |= {"online": flat(online), "target": flat(target), "actions": actions.tolist()}
    case |= {"masks": masks.tolist(), "gamma": 0.95, "rate": 1e-2, "max_norm": max_norm, "steps": []}
    optimiser = torch.optim.Adam(online, lr=1e-2, eps=1e-8)
    for picks in data["picks"]:
        weights = single(RNG.uniform(0.2, 1.0, rows))
        with torch.no_grad():
            nexts = data["nexts"][picks]
            selector = online if double else target
            allowed = torch.tensor(masks[picks] | data["terminated"][picks, None])
            ruled = action_values(nexts, selector, dueling).masked_fill(~allowed, -torch.inf)
            values = action_values(nexts, target, dueling)
            following = values.gather(1, ruled.argmax(1, keepdim=True))[:, 0]
            goes_on = 1.0 - torch.tensor(data["terminated"][picks], dtype=torch.float64)
            targets = data["rewards"][picks] + 0.95 * goes_on * following
        chosen = action_values(data["observations"][picks], online, dueling)
        chosen = chosen.gather(1, actions[picks, None])[:, 0]
        loss = (weights * F.smooth_l1_loss(chosen, targets, reduction="none")).mean()
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(online, max_norm)
        step = {"weights": weights, "loss": loss.item(), "q": chosen.mean().item(), "norm": float(norm)}
        case["steps"].append({**step, "gradient": gradient(online)} if not case["steps"] else step)
        optimiser.step()
    return {**case, "after": flat(online)}


def ddpg():
    """Steps of critic, actor and target networks."""
    rows, width, max_norm, tau, decay = 8, 2, 0.4, 0.1, 0.02
    build_actor = lambda: layer(INPUTS, HIDDEN) + layer(HIDDEN, HIDDEN) + layer(HIDDEN, width)
    build_critic = lambda: layer(INPUTS, HIDDEN) + layer(HIDDEN + width, HIDDEN) + layer(HIDDEN, 1)
    actor, critic = build_actor(), build_critic()
    targets = build_actor(), build_critic()
    act = lambda x, params: torch.tanh(dense(trunk(x, params, torch.relu), params, 2))

    def value(x, a, params):
        joint = torch.cat([torch.relu(dense(x, params, 0)), a], 1)
        return dense(torch.relu(dense(joint, params, 1)), params, 2)[:, 0]

    data = transitions(12, rows)
    actions = single(RNG.uniform(-1, 1, (12, width)))
    case = plain(data) | {"rows": rows, "hidden": HIDDEN, "width": width, "actions": actions.tolist()}
    case |= {"gamma": 0.9, "tau": tau, "max_norm": max_norm, "weight_decay": decay, "rates": [1e-3, 1e-2]}
    case |= {"actor": flat(actor), "critic": flat(critic), "steps": []}
    case |= {"target_actor": flat(targets[0]), "target_critic": flat(targets[1])}
    of_actor = torch.optim.Adam(actor, lr=1e-3, eps=1e-8)
    of_critic = torch.optim.Adam(critic, lr=1e-2, eps=1e-8, weight_decay=decay)
    for picks in data["picks"]:
        states, nexts = data["observations"][picks], data["nexts"][picks]
        with torch.no_grad():
            goes_on = 1.0 - torch.tensor(data["terminated"][picks], dtype=torch.float64)
            following = value(nexts, act(nexts, targets[0]), targets[1])
            wanted = data["rewards"][picks] + 0.9 * goes_on * following
        of_critic.zero_grad()
        value_loss = F.mse_loss(value(states, actions[picks], critic), wanted)
        value_loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(critic, max_norm)
        of_critic.step()
        of_actor.zero_grad()
        loss = -value(states, act(states, actor), critic).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(actor, max_norm)
        step = {"value_loss": value_loss.item(), "norm": float(norm), "policy_loss": loss.item()}
        case["steps"].append({**step, "gradient": gradient(actor)} if not case["steps"] else step)
        of_actor.step()
        with torch.no_grad():
            for mine, other in zip(targets, (actor, critic)):
                for p, q in zip(mine, other):
                    p += tau * (q - p)
    after = {"actor": flat(actor), "critic": flat(critic)}
    return {**case, "after": {**after, "target_actor": flat(targets[0]), "target_critic": flat(targets[1])}}


def advantages_of(rewards, values, ends, finals, last, gamma, decay):
    """Generalised advantage estimation, by its definition: point in time × copy."""
    result = np.zeros_like(rewards)
    for copy in range(rewards.shape[1]):
        for start in range(rewards.shape[0]):
            factor = 1.0
            for at in range(start, rewards.shape[0]):
                over = ends[at, copy] != 0
                last_at = at + 1 == rewards.shape[0]
                following = last[copy] if last_at else values[at + 1, copy]
                following = finals[at, copy] if over else following
                error = rewards[at, copy] + gamma * following - values[at, copy]
                result[start, copy] += factor * error
                factor *= gamma * decay
                if over:
                    break
    return result


def distribution(outputs, log_std, masks, actions):
    """The log-probabilities of actions and the entropies."""
    if log_std is None:
        logs = F.log_softmax(outputs.masked_fill(~masks, -torch.inf), 1)
        terms = torch.where(masks, logs.exp() * logs.masked_fill(~masks, 0.0), torch.zeros(()))
        return logs.gather(1, actions.long())[:, 0], -terms.sum(1)
    normal_ = torch.distributions.Normal(outputs, log_std.exp().expand_as(outputs))
    return normal_.log_prob(actions).sum(1), normal_.entropy().sum(1)


def on_policy(name, continuous, clip=None, clip_value=False, epochs=1):
    """Passes over a rollout of six steps of four copies."""
    steps, copies, outputs = 6, 4, 2 if continuous else ACTIONS
    rows, batch = steps * copies, 8 if clip else steps * copies
    branch = lambda last: layer(INPUTS, HIDDEN) + layer(HIDDEN, HIDDEN) + layer(HIDDEN, last)
    actor, critic = branch(outputs), branch(1)
    log_std = single([-0.5, 0.3]).requires_grad_() if continuous else None
    observations, masks = normal(rows, INPUTS), torch.ones(rows, outputs, dtype=torch.bool)
    if not continuous:
        masks[::3, 1] = False
    allowed = [np.flatnonzero(row) for row in masks.numpy()]
    actions = normal(rows, 2) if continuous else single([[RNG.choice(row)] for row in allowed])
    evaluate = lambda at: distribution(
        dense(trunk(observations[at], actor, torch.tanh), actor, 2), log_std, masks[at], actions[at]
    )
    everything = list(range(rows))
    old_logs = single(evaluate(everything)[0].detach() + normal(rows, scale=0.15))
    values, rewards = normal(steps, copies), normal(steps, copies)
    ends = np.zeros((steps, copies), dtype=int)
    ends[2, 1], ends[4, 3], ends[1, 0] = 1, 1, 2  # 1: final, 2: cut off by the time limit
    final = normal(INPUTS)
    of_final = float(dense(trunk(final[None], critic, torch.tanh), critic, 2))
    finals, last = np.where(ends == 2, of_final, 0.0), normal(copies)
    arrays = [x.numpy() for x in (rewards, values)]
    advantages = torch.tensor(advantages_of(*arrays, ends, finals, last.numpy(), 0.9, 0.8)).reshape(-1)
    returns, values = advantages + values.reshape(-1), values.reshape(-1)
    everyone = actor + critic + ([log_std] if continuous else [])
    case = {"algorithm": name, "continuous": continuous, "hidden": HIDDEN, "steps": steps, "copies": copies}
    case |= {"clip": clip, "clip_value": clip_value, "batch": batch, "max_norm": 0.5, "rate": 3e-3}
    case |= {"params": flat(actor + critic), "log_std": log_std.tolist() if continuous else []}
    case |= {"observations": observations.reshape(-1), "actions": actions.reshape(-1), "ends": ends.reshape(-1)}
    case |= {"masks": [] if continuous else masks.reshape(-1).tolist(), "log_probabilities": old_logs}
    case |= {"values": values, "rewards": rewards.reshape(-1), "final": final, "last_values": last}
    case |= {"advantages": advantages.clone(), "returns": returns.clone(), "passes": []}
    optimiser = torch.optim.Adam(everyone, lr=3e-3, eps=1e-5)
    for _ in range(epochs):
        order = RNG.permutation(rows).tolist() if clip else everything
        found = []
        for start in range(0, rows, batch):
            at = order[start : start + batch]
            logs, entropy = evaluate(at)
            a = (advantages[at] - advantages[at].mean()) / (advantages[at].std() + 1e-8)
            ratio = (logs - old_logs[at]).exp()
            policy, outside = -(a * logs).mean(), torch.zeros(())
            if clip:
                cut = ratio.clamp(1 - clip, 1 + clip)
                policy, outside = torch.max(-a * ratio, -a * cut).mean(), (ratio != cut).double().mean()
            predicted = dense(trunk(observations[at], critic, torch.tanh), critic, 2)[:, 0]
            value_loss = (predicted - returns[at]).square()
            if clip_value:
                near = values[at] + (predicted - values[at]).clamp(-clip, clip)
                value_loss = torch.max(value_loss, (near - returns[at]).square())
            value_loss = value_loss.mean()
            loss = policy + 0.5 * value_loss - 0.02 * entropy.mean()
            optimiser.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(everyone, 0.5)
            kl = (ratio - 1 - (logs - old_logs[at])).mean()
            found.append([float(x) for x in (loss, policy, value_loss, entropy.mean(), kl, outside, norm)])
            if "gradient" not in case:
                case["gradient"] = gradient(everyone)
            optimiser.step()
        case["passes"].append({"order": order, "means": np.mean(found, 0)})
    return {**case, "after": flat(everyone)}


if __name__ == "__main__":
    net()
    write("dqn", [dqn(double=True, dueling=False), dqn(double=False, dueling=True)])
    write("ddpg", ddpg())
    cases = [
        on_policy("a2c", continuous=False),
        on_policy("a2c", continuous=True),
        on_policy("ppo", continuous=False, clip=0.2, clip_value=True, epochs=3),
        on_policy("ppo", continuous=True, clip=0.2, epochs=3),
    ]
    write("on_policy", cases)
