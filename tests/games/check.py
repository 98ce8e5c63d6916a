"""Confirms certificates of game solutions from the raw payoffs, in exact arithmetic.

Reads JSON objects, one a line:
  shape, payoffs      the game; one row-major tensor for each player
  profile             one strategy for each player, or
  lottery, concept    probabilities of joint actions, "correlated" or "coarse"
  regret, expected, nash_conv, relative_regret, tolerance, converged   what is claimed
and answers each with "ok" or with what is wrong. Ends with 1 when something was.

Nothing but Python's standard library: it shares no code with what it checks.
"""

import json
import math
import sys
from fractions import Fraction

# How far a claim, computed in binary fractions, may be from the truth: a share of the payoff range.
ROUNDING = Fraction(1, 10**12)


def distribution(weights):
    exact = [Fraction(w) for w in weights]
    if any(w < 0 for w in exact):
        raise ValueError("a probability is negative")
    if abs(sum(exact) - 1) > ROUNDING:
        raise ValueError(f"probabilities sum to {float(sum(exact))}")
    return exact


def joint_actions(shape):
    joint = [0] * len(shape)
    for _ in range(math.prod(shape)):
        yield tuple(joint)
        for place in reversed(range(len(shape))):
            joint[place] += 1
            if joint[place] < shape[place]:
                break
            joint[place] = 0


def action_values(shape, tensor, player, profile):
    """What each of a player's actions earns against the others' strategies."""
    values = [Fraction(0)] * shape[player]
    for payoff, joint in zip(tensor, joint_actions(shape)):
        weight = Fraction(1)
        for other, action in enumerate(joint):
            if other != player:
                weight *= profile[other][action]
                if not weight:
                    break
        else:
            values[joint[player]] += weight * payoff
    return values


def of_profile(shape, payoffs, profile):
    regret, expected = [], []
    for player, tensor in enumerate(payoffs):
        values = action_values(shape, tensor, player, profile)
        mean = sum(p * v for p, v in zip(profile[player], values))
        expected.append(mean)
        # Weights do not sum to one exactly: what they lack has no payoff to lose.
        regret.append(sum(p * (max(values) - v) for p, v in zip(profile[player], values)))
    return regret, expected


def of_lottery(shape, payoffs, lottery, concept):
    regret, expected = [], []
    for player, tensor in enumerate(payoffs):
        stride = math.prod(shape[player + 1:])
        gains = [[Fraction(0)] * shape[player] for _ in range(shape[player])]
        for cell, weight in enumerate(lottery):
            if not weight:
                continue
            told = cell // stride % shape[player]
            for instead in range(shape[player]):
                gains[told][instead] += weight * (tensor[cell + (instead - told) * stride] - tensor[cell])
        if concept == "correlated":
            regret.append(sum(max(row) for row in gains))
        else:
            regret.append(max(Fraction(0), *(sum(column) for column in zip(*gains))))
        expected.append(sum(w * v for w, v in zip(lottery, tensor)))
    return regret, expected


def check(claim):
    shape = claim["shape"]
    payoffs = [[Fraction(v) for v in tensor] for tensor in claim["payoffs"]]
    ranges = [max(tensor) - min(tensor) for tensor in payoffs]
    sizes = [max(abs(v) for v in tensor) for tensor in payoffs]
    if "lottery" in claim:
        lottery = distribution(claim["lottery"])
        regret, expected = of_lottery(shape, payoffs, lottery, claim["concept"])
    else:
        profile = [distribution(s) for s in claim["profile"]]
        if [len(s) for s in profile] != shape:
            raise ValueError("the profile does not fit the game")
        regret, expected = of_profile(shape, payoffs, profile)

    def near(what, claimed, exact, size):
        if abs(Fraction(claimed) - exact) > ROUNDING * size:
            raise ValueError(f"{what} is {float(exact)!r}, not {claimed!r}")

    for player in range(len(shape)):
        near(f"regret {player}", claim["regret"][player], regret[player], ranges[player])
        near(f"payoff {player}", claim["expected"][player], expected[player], sizes[player])
    if "nash_conv" in claim:
        near("NashConv", claim["nash_conv"], sum(regret), sum(ranges))
    relative = max((r / s if s else Fraction(0)) for r, s in zip(regret, ranges))
    near("relative regret", claim["relative_regret"], relative, 1)
    within = relative <= Fraction(claim["tolerance"]) + ROUNDING
    if claim["converged"] and not within:
        raise ValueError(f"claimed as converged with a regret of {float(relative)!r}")


def main():
    wrong = 0
    for line in sys.stdin:
        try:
            check(json.loads(line))
            answer = "ok"
        except (ValueError, KeyError, IndexError, TypeError) as error:
            answer = f"{type(error).__name__}: {error}"
            wrong += 1
        print(answer, flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
