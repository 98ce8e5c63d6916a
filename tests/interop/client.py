"""An independent client in another language: stubs generated from the protos, grpcio, mTLS."""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

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
sys.path.insert(0, out)

import grpc
from google.protobuf import struct_pb2
from tars.auth.v1 import admin_pb2, admin_pb2_grpc, auth_pb2, auth_pb2_grpc
from tars.automl.v1 import automl_pb2, automl_pb2_grpc
from tars.hypersync.v1 import hypersync_pb2, hypersync_pb2_grpc
from tars.orchestration.v1 import game_pb2, game_pb2_grpc
from tars.orchestration.v1 import orchestration_pb2, orchestration_pb2_grpc, training_pb2, training_pb2_grpc


def channel(service):
    credentials = grpc.ssl_channel_credentials(
        Path(ready["ca"]).read_bytes(),
        Path(ready["client_key"]).read_bytes(),
        Path(ready["client_cert"]).read_bytes(),
    )
    return grpc.secure_channel(ready[service].removeprefix("https://"), credentials)


def refused(code, call):
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code, (error.code(), error.details())
        return error
    raise AssertionError("the call was let through")


auth = auth_pb2_grpc.AuthServiceStub(channel("auth"))
password = Path(ready["admin_password_file"]).read_text()
refused(
    grpc.StatusCode.UNAUTHENTICATED,
    lambda: auth.Login(auth_pb2.LoginRequest(username="admin", password="guess")),
)
refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: auth.Login(auth_pb2.LoginRequest()))


def login(username, password):
    token = auth.Login(auth_pb2.LoginRequest(username=username, password=password)).access_token
    return [("authorization", f"Bearer {token}")]


admin = login("admin", password)
users = admin_pb2_grpc.UserServiceStub(channel("auth"))
users.CreateUser(
    admin_pb2.CreateUserRequest(username="grace", password="a long password", roles=["developer"]), metadata=admin
)
grace = login("grace", "a long password")
assert auth.GetMe(auth_pb2.GetMeRequest(), metadata=grace).username == "grace"
refused(
    grpc.StatusCode.PERMISSION_DENIED,
    lambda: users.ListUsers(admin_pb2.ListUsersRequest(), metadata=grace),
)

training = training_pb2_grpc.TrainingServiceStub(channel("orchestration"))
run = training.StartTraining(
    training_pb2.StartTrainingRequest(agent_id="policy", steps=1000, seed=3), metadata=grace
).run
items = list(training.WatchTraining(training_pb2.WatchTrainingRequest(run_id=run.run_id), metadata=grace))
assert [i.sequence for i in items] == list(range(1, len(items) + 1))
assert items[-1].ended.state == training_pb2.TRAINING_STATE_COMPLETED
assert items[-1].ended.HasField("final_return")

# A game over the wire; its certificate is confirmed here, from the payoffs that were sent.
sys.path.insert(0, str(Path(__file__).parent.parent / "games"))
import check

drawn = random.Random(11)
names, shape = ["a", "b", "c"], [3, 2, 3]
payoffs = [[drawn.random() for _ in range(18)] for _ in names]


def game(payoffs):
    return game_pb2.Game(
        players=[
            game_pb2.Player(name=name, actions=[str(k) for k in range(size)], payoffs=own)
            for name, size, own in zip(names, shape, payoffs)
        ]
    )


games = game_pb2_grpc.GameServiceStub(channel("orchestration"))
solving = list(games.WatchNash(game_pb2.WatchNashRequest(game=game(payoffs)), metadata=grace))
assert [i.sequence for i in solving] == list(range(1, len(solving) + 1))
found = solving[-1].equilibrium
assert found.converged
check.check(
    {
        "shape": shape,
        "payoffs": payoffs,
        "profile": [list(found.strategy_profile[n].probabilities) for n in names],
        "regret": [found.regret[n] for n in names],
        "expected": [found.expected_payoffs[n] for n in names],
        "nash_conv": found.nash_conv,
        "relative_regret": found.relative_regret,
        "tolerance": found.tolerance,
        "converged": found.converged,
    }
)
broken = [payoffs[0], payoffs[1][:-1] + [float("nan")], payoffs[2]]
refused(
    grpc.StatusCode.INVALID_ARGUMENT,
    lambda: games.FindEquilibria(game_pb2.FindEquilibriaRequest(game=game(broken)), metadata=grace),
)
refused(
    grpc.StatusCode.UNAUTHENTICATED,
    lambda: games.FindEquilibria(game_pb2.FindEquilibriaRequest(game=game(payoffs))),
)

agents = orchestration_pb2_grpc.OrchestrationServiceStub(channel("orchestration"))
acted = agents.Step(
    orchestration_pb2.StepRequest(policy_state=orchestration_pb2.Observation(state_vector=[0, 0, 0.05, 0])),
    metadata=grace,
)
assert acted.agent_actions["policy"].action_name in ("push_left", "push_right")
wrong = struct_pb2.Struct()
wrong["gamma"] = -7
refused(
    grpc.StatusCode.INVALID_ARGUMENT,
    lambda: agents.ReloadAgent(
        orchestration_pb2.ReloadAgentRequest(agent_id="policy", hyperparameters=wrong), metadata=grace
    ),
)

studies = automl_pb2_grpc.StudyServiceStub(channel("automl"))
study = studies.Optimize(
    automl_pb2.OptimizeRequest(n_trials=2, steps=500, sampler_type="random"), metadata=grace
).optimization_id
last = list(studies.WatchStudy(automl_pb2.WatchStudyRequest(study_id=study), metadata=grace))[-1]
assert last.ended.state == automl_pb2.STUDY_STATE_COMPLETED, last

sync = hypersync_pb2_grpc.SyncServiceStub(channel("hypersync"))
proposal = sync.ProposeUpdate(hypersync_pb2.ProposeUpdateRequest(study_id=study), metadata=grace).proposal
assert proposal.state == hypersync_pb2.PROPOSAL_STATE_PENDING_APPROVAL
refused(
    grpc.StatusCode.PERMISSION_DENIED,
    lambda: sync.ApproveProposal(
        hypersync_pb2.ApproveProposalRequest(update_id=proposal.update_id), metadata=grace
    ),
)
rejected = sync.RejectProposal(
    hypersync_pb2.RejectProposalRequest(update_id=proposal.update_id, reason="only a test"), metadata=admin
).proposal
assert rejected.state == hypersync_pb2.PROPOSAL_STATE_REJECTED and rejected.decided_by == "user:admin"
print("ok")
