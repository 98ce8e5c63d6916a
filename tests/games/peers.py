"""Solves games with nashpy and Gambit, for `cargo xtask bench nash`.

Started with the name of a solver; reads {"shape", "payoffs"} objects, one a line, and answers each
with {"us", "profile"} or {"error"}: the processor time that the solver's own call took, without
reading the game and building its object, and what it found. Whoever starts this ends it when it
takes too long: some of these do not return.
"""

import json
import sys
import time
import warnings

import numpy

warnings.filterwarnings("ignore")


def arrays(game):
    return [numpy.array(tensor, dtype=float).reshape(game["shape"]) for tensor in game["payoffs"]]


def nashpy_game(game):
    import nashpy

    return nashpy.Game(*arrays(game))


def gambit_game(game):
    import pygambit

    return pygambit.Game.from_arrays(*arrays(game))


def of_gambit(result):
    for profile in result.equilibria:
        return [[float(p) for _, p in strategy] for _, strategy in profile.mixed_strategies()]
    return None


def gambit(*names, **options):
    """Tries Gambit's solvers in turn until one finds something."""

    def solve(game):
        import pygambit

        for name in names:
            own = options if name == "lcp" or name == "lp" else {}
            result = getattr(pygambit.nash, f"{name}_solve")(game, **own)
            if len(result.equilibria):
                return result
        return result

    return gambit_game, solve, of_gambit


SOLVERS = {
    "nashpy_support_enumeration": (nashpy_game, lambda g: next(iter(g.support_enumeration()), None), None),
    "nashpy_lemke_howson": (nashpy_game, lambda g: g.lemke_howson(initial_dropped_label=0), None),
    "nashpy_linear_program": (nashpy_game, lambda g: g.linear_program(), None),
    "gambit_lcp": gambit("lcp", rational=False),
    "gambit_pure_lcp": gambit("enumpure", "lcp", rational=False),
    "gambit_lp": gambit("lp", rational=False),
    "gambit_ipa": gambit("ipa"),
    "gambit_pure_ipa": gambit("enumpure", "ipa"),
    "gambit_logit": gambit("logit"),
}


def main():
    build, solve, read = SOLVERS[sys.argv[1]]
    for line in sys.stdin:
        game = json.loads(line)
        try:
            built = build(game)
            started = time.process_time_ns()
            found = solve(built)
            spent = (time.process_time_ns() - started) / 1000
            profile = read(found) if read else (found and [[float(p) for p in s] for s in found])
            answer = {"us": spent, "profile": profile}
            json.dumps(answer, allow_nan=False)
        except Exception as error:  # a peer's failure is its answer
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
