//! Agents: training, evaluation, serving, reload, games.
